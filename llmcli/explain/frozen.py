"""A norm frozen as it acted on one vector: from then on a linear map, in which the vector's parts add up.

The alternative, to norm each part by itself, would give numbers that do not sum to what the model computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from llmcli.model.layers import Norm


@dataclass(frozen=True)
class FrozenNorm:
    """y = gain ⊙ (c - mean(c)) + bias, or without the mean for RMSNorm; the gain holds the vector's own length."""

    gain: Tensor  # [C], fp64
    bias: Tensor | None  # [C], fp64
    centred: bool

    def back(self, direction: Tensor) -> Tensor:
        """The direction [..., C] in the norm's input along which a part adds to ``direction`` in its output."""
        scaled = direction * self.gain
        return scaled - scaled.mean(dim=-1, keepdim=True) if self.centred else scaled

    def constant(self, direction: Tensor) -> Tensor:
        """What the bias adds along ``direction`` [..., C], whatever the input: [...]."""
        return direction.new_zeros(direction.shape[:-1]) if self.bias is None else direction @ self.bias


def freeze(norm: Norm, x: Tensor) -> FrozenNorm:
    """The norm as it acts on x [C]."""
    x = x.double()
    if not norm.rms:
        x = x - x.mean()
    length = (x.square().mean() + norm.eps).sqrt()
    bias = None if norm.bias is None else norm.bias.detach().double()
    return FrozenNorm((norm.weight.detach().double() + norm.offset) / length, bias, centred=not norm.rms)
