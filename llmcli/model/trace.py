"""Recording a forward pass: fp32 copies that are never fed back into the computation."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Trace:
    """What one forward pass computes, one entry per layer, in order.

    ``rows`` are the positions of the pass to record; None records all. ``values`` are always those of all S positions,
    0 for those that no query of the pass sees.
    """

    rows: slice | None = None
    residual: list[Tensor] = field(default_factory=list)  # before each block, then after the last: [B, rows, C]
    attn_out: list[Tensor] = field(default_factory=list)  # what attention adds to the residual: [B, rows, C]
    mlp_out: list[Tensor] = field(default_factory=list)  # what the MLP adds: [B, rows, C]
    attention: list[Tensor] = field(default_factory=list)  # weights per head: [B, H, rows, S]
    values: list[Tensor] = field(default_factory=list)  # per key/value head: [B, K, S, D]

    def keep(self, into: list[Tensor], x: Tensor) -> None:
        """Append a copy of the ``rows`` of x [B, T, C], or of a single vector x [C] as [1, 1, C]."""
        x = x.view(1, 1, -1) if x.dim() == 1 else x
        keep(into, x if self.rows is None else x[:, self.rows])


def keep(into: list[Tensor], x: Tensor) -> None:
    """Append an fp32 copy of x, which later in-place operations do not change."""
    into.append(x.detach().float().clone())
