"""The small parts that every layer is made of: matrices, tables and norms."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.model.config import ModelConfig

onednn: Any = torch.backends.mkldnn


def vector(x: Tensor) -> Tensor:
    """x [..., C] as a single vector [C] where that is all there is to decode on a CPU: otherwise as it is.

    torch's kernels for many vectors would be mostly overhead then. Not under autocast, which knows nothing
    of those for one.
    """
    single = x.numel() == x.shape[-1] and x.device.type == "cpu" and not torch.is_grad_enabled()
    return x.view(-1) if single and not torch.is_autocast_enabled("cpu") else x


@lru_cache(maxsize=8)
def zero(dtype: torch.dtype) -> Tensor:
    """The number 0."""
    return torch.zeros((), dtype=dtype)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias, of x [..., in] or of a single vector [in]."""
    if x.dim() > 1:
        return F.linear(x, weight, bias)
    # Matrix times vector is bound by memory: torch's own kernel reads at the machine's limit, oneDNN's at half of it.
    before, onednn.enabled = onednn.enabled, False
    try:
        y = torch.mv(weight, x)
    finally:
        onednn.enabled = before
    return y if bias is None else y + bias


class Linear(nn.Linear):
    """torch's, left uninitialised: values come from a checkpoint or from training, and random ones take a second."""

    def reset_parameters(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias)

    def dense(self, part: slice) -> Tensor:
        """Rows of the matrix in fp32, [rows, in], however they are kept."""
        return self.weight[part].detach().float()


class Embedding(nn.Embedding):
    """Likewise."""

    def reset_parameters(self) -> None:
        pass

    def unembed(self, x: Tensor) -> Tensor:
        """x [..., C] times every row, [..., V]: the head where that is tied to the table."""
        return product(x, self.weight)


class Norm(nn.Module):
    """RMSNorm (Zhang & Sennrich 2019) or LayerNorm (Ba et al. 2016) over the last dimension, as the config says.

    ``size`` features are normalised together; with ``heads``, each of the second last dimension's
    heads has a weight of its own.
    """

    def __init__(self, config: ModelConfig, size: int, *, heads: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.rms = config.norm == "rms"
        self.eps = config.norm_eps
        self.offset = config.norm_offset
        self.size, self.heads = size, heads
        self.weight = nn.Parameter(torch.empty(heads * size))
        self.bias = nn.Parameter(torch.empty(heads * size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.heads > 1:
            return self._normed(x.float(), None, None).mul(self.weight.view(self.heads, self.size)).to(x.dtype)
        if self.rms and x.dim() == 1:
            return self._one(x)
        if self.offset:
            # In fp32 up to the product: a bf16 weight near 0 is finer than the same weight near 1.
            return self._normed(x.float(), self.weight.float() + self.offset, None).to(x.dtype)
        return self._normed(x, self.weight, self.bias)

    def _one(self, x: Tensor) -> Tensor:
        """RMSNorm of a single vector: the same, in a third of the time that torch's kernel for many takes."""
        length = float(torch.linalg.vector_norm(x, dtype=torch.float32))
        scale = (length * length / self.size + self.eps) ** -0.5
        if self.offset:
            return (x.float() * (self.weight.float() + self.offset)).mul_(scale).to(x.dtype)
        return torch.addcmul(zero(x.dtype), x, self.weight, value=scale)

    def _normed(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if self.rms:
            return F.rms_norm(x, (self.size,), weight, self.eps)
        return F.layer_norm(x, (self.size,), weight, bias, self.eps)
