"""The modules that every layer is made of: matrices, embedding tables and norms.

Weights may be bfloat16 or float16; what flows between the modules is fp32. Only the input of a matrix is rounded to its
dtype, where the hardware multiplies fastest. The sums of the head stay in fp32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.model.config import ModelConfig

HEAD_ROWS = 2**13  # rows of a head that are converted to fp32 at a time


class Linear(nn.Linear):
    """torch's Linear without initialization: a checkpoint or training sets the values."""

    def reset_parameters(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)

    def unembed(self, x: Tensor) -> Tensor:
        """The logits, fp32 [..., out], of x [..., in], if this is the head; without its bias."""
        return wide_product(x, self.weight)

    def dense(self, rows: slice) -> Tensor:
        """The given rows of the matrix in fp32, [rows, in]; quantized modules dequantize them."""
        return self.weight[rows].detach().float()


class Embedding(nn.Embedding):
    """torch's Embedding without initialization."""

    def reset_parameters(self) -> None:
        pass

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = super().forward(ids)
        return rows.float()

    def unembed(self, x: Tensor) -> Tensor:
        """The logits, fp32 [..., V], of x [..., C], if the table is also the head (tied weights)."""
        return wide_product(x, self.weight)


def wide_product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., K] times weight^T, [..., N], with fp32 sums: rounded to bfloat16, many logits would be equal."""
    if weight.dtype == torch.float32:
        return F.linear(x, weight)
    if weight.is_cuda:
        rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        return torch.mm(rows, weight.t(), out_dtype=torch.float32).view(*x.shape[:-1], -1)
    parts = [F.linear(x.float(), part.float()) for part in torch.split(weight, HEAD_ROWS)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class Norm(nn.Module):
    """RMSNorm (Zhang & Sennrich 2019) or LayerNorm (Ba et al. 2016) over the last dimension, as the config says.

    ``size`` features are normalized together. With ``heads``, x is [..., heads, size] and each head has its own
    weight. ``offset`` and ``eps`` None are the config's. Without weights in the model, the weight is a buffer of ones.
    """

    weight: Tensor

    def __init__(
        self,
        config: ModelConfig,
        size: int,
        *,
        heads: int = 1,
        bias: bool = False,
        offset: float | None = None,
        eps: float | None = None,
    ) -> None:
        super().__init__()
        self.rms = config.norm == "rms"
        self.eps = config.norm_eps if eps is None else eps
        self.offset = config.norm_offset if offset is None else offset
        self.size, self.heads = size, heads
        if config.norm_weight:
            self.weight = nn.Parameter(torch.empty(heads * size))
        else:
            self.register_buffer("weight", torch.ones(heads * size), persistent=False)
        self.bias = nn.Parameter(torch.empty(heads * size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        normed = self._normed(x.float()) * self.scale()
        return normed if self.bias is None else normed + self.bias.float()

    def scale(self) -> Tensor:
        """What normalized features are multiplied by, fp32: [size], or [heads, size]."""
        weight = self.weight.float()  # before the offset: bf16 represents a number near 0 more finely than one near 1
        weight = weight + self.offset if self.offset else weight
        return weight.view(self.heads, self.size) if self.heads > 1 else weight

    def _normed(self, x: Tensor) -> Tensor:
        if self.rms:
            return F.rms_norm(x, (self.size,), None, self.eps)
        return F.layer_norm(x, (self.size,), None, None, self.eps)
