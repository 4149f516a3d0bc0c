"""The modules that every layer is made of: matrices, embedding tables and norms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.model.config import ModelConfig


class Linear(nn.Linear):
    """torch's Linear without initialization: a checkpoint or training sets the values."""

    def reset_parameters(self) -> None:
        pass

    def dense(self, rows: slice) -> Tensor:
        """The given rows of the matrix in fp32, [rows, in]; quantized modules dequantize them."""
        return self.weight[rows].detach().float()


class Embedding(nn.Embedding):
    """torch's Embedding without initialization."""

    def reset_parameters(self) -> None:
        pass

    def unembed(self, x: Tensor) -> Tensor:
        """x [..., C] times every row of the table, [..., V]: the head of a model with tied weights."""
        return F.linear(x, self.weight)


class Norm(nn.Module):
    """RMSNorm (Zhang & Sennrich 2019) or LayerNorm (Ba et al. 2016) over the last dimension, as the config says.

    ``size`` features are normalized together. With ``heads``, x is [..., heads, size] and each head has its own
    weight.
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
        if self.offset:
            # In fp32 until after the product: bf16 represents a weight near 0 more finely than 1 plus that weight.
            return self._normed(x.float(), self.weight.float() + self.offset, None).to(x.dtype)
        return self._normed(x, self.weight, self.bias)

    def _normed(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if self.rms:
            return F.rms_norm(x, (self.size,), weight, self.eps)
        return F.layer_norm(x, (self.size,), weight, bias, self.eps)
