"""Numbers rounded to 8 or 4 bits, and what they must be multiplied with.

A row of an 8-bit matrix has one scale, its largest value / 127. In 4 bits, every 32 weights of a row
share a whole-number factor from 1 to 15 (or its negative) of the row's scale; scales are themselves
quantised in Dettmers et al. 2023 (QLoRA). So a 4-bit matrix times its factors is an 8-bit one.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32  # weights of a row that share a factor
STEPS = 15  # the largest factor: times -8, the farthest 4-bit number, it still fits 8 bits
TRIED = (-3, -2, -1, 0, 1, 2)  # distances from the factor that just spans a group: clipping a little often pays
SMALLEST = 1e-30  # a scale is never 0


def to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """rows [N, K] as int8, and by what to multiply them, fp32 [N, 1]."""
    wide = rows.float()
    scale = wide.abs().amax(-1, keepdim=True).clamp_min_(SMALLEST) / 127
    return (wide / scale).round_().to(torch.int8), scale


def to_int4(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """rows [N, K] as numbers from -8 to 7, int8; a factor for each group, int8 [N, K / GROUP]; a scale, fp32 [N, 1].

    The weights are their product. Of the factors tried, the one with the least squared error is taken.
    """
    wide = rows.float()
    scale = wide.abs().amax(-1, keepdim=True).clamp_min_(SMALLEST) / 8 / STEPS
    groups = (wide / scale).view(len(rows), -1, GROUP)  # in units of the scale, whose squares fit any float
    peaks = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    spanning = peaks / -8  # so that the largest of a group is -8, which has no positive twin
    best = torch.full_like(peaks, torch.inf)
    codes, factors = torch.zeros_like(groups), torch.ones_like(peaks)
    for distance in TRIED:
        size = (spanning.abs().round() + distance).clamp(1, STEPS)
        factor = torch.where(spanning < 0, -size, size)
        rounded = (groups / factor).round_().clamp_(-8, 7)
        error = (groups - rounded * factor).square().sum(-1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        codes, factors = torch.where(better, rounded, codes), torch.where(better, factor, factors)
    return codes.to(torch.int8).flatten(1), factors.to(torch.int8).squeeze(-1), scale


def nibbles(codes: Tensor) -> Tensor:
    """Numbers from -8 to 7 [N, K], two in a byte, the first in its low half: uint8 [N, K / 2]."""
    low, high = codes.view(torch.uint8).view(len(codes), -1, 2).unbind(-1)
    return (low & 15) | (high << 4)


def from_nibbles(pairs: Tensor) -> Tensor:
    """``nibbles`` undone."""
    signed = pairs.view(torch.int8)
    return torch.stack(((signed << 4) >> 4, signed >> 4), dim=-1).flatten(1)
