"""Recording a forward pass: fp32 copies that are never fed back into the computation."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Trace:
    """What one forward pass computes: lists have one entry per layer, in order, the others one per attention layer.

    ``rows`` are the positions of the pass to record; None records all. ``values`` are always those of all S positions,
    0 for those that no query of the pass sees. ``gates`` are what heads' outputs are multiplied by, if the model does.
    """

    rows: slice | None = None
    residual: list[Tensor] = field(default_factory=list)  # before each block, then after the last: [B, rows, C]
    attn_out: list[Tensor] = field(default_factory=list)  # what attention and the mixer add: [B, rows, C]
    mlp_out: list[Tensor] = field(default_factory=list)  # what the MLP adds: [B, rows, C]
    input_out: list[Tensor] = field(default_factory=list)  # what per-layer embeddings add, if there are any
    mixer_out: dict[int, Tensor] = field(default_factory=dict)  # the mixer's part, if beside attention: [B, rows, C]
    attention: dict[int, Tensor] = field(default_factory=dict)  # weights per head: [B, H, rows, S]
    values: dict[int, Tensor] = field(default_factory=dict)  # per key/value head: [B, K, S, D]
    gates: dict[int, Tensor] = field(default_factory=dict)  # [B, H, rows, D]

    def keep(self, into: list[Tensor], x: Tensor) -> None:
        """Append a copy of the ``rows`` of x [B, T, C], or of a single vector x [C] as [1, 1, C]."""
        x = x.view(1, 1, -1) if x.dim() == 1 else x
        into.append(kept(x if self.rows is None else x[:, self.rows]))


def kept(x: Tensor) -> Tensor:
    """An fp32 copy of x, which later in-place operations do not change."""
    return x.detach().float().clone()
