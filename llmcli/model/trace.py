"""What an observer keeps of a forward pass: fp32 copies, taken beside the computation and never fed back."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Trace:
    """Filled by one forward pass, one entry a layer, in order.

    ``rows`` are the query positions (of this pass) whose attention weights are kept; None keeps all.
    """

    rows: slice | None = None
    residual: list[Tensor] = field(default_factory=list)  # before each block, then after the last: [B, T, C]
    attn_out: list[Tensor] = field(default_factory=list)  # what attention adds to the residual: [B, T, C]
    mlp_out: list[Tensor] = field(default_factory=list)  # what the MLP adds: [B, T, C]
    attention: list[Tensor] = field(default_factory=list)  # weights per head: [B, H, rows, S]


def keep(into: list[Tensor], x: Tensor) -> None:
    """Append an fp32 copy of x that later in-place work cannot change; of a single vector [C] as [1, 1, C]."""
    copy = x.detach().float().clone()
    into.append(copy.view(1, 1, -1) if x.dim() == 1 else copy)
