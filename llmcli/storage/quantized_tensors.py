"""Tensors quantized to 8 or 4 bits, and the scales that restore them.

A row of an 8-bit matrix has one scale, its largest value / 127. In 4 bits, each group of 32 weights of a row also has
an integer factor of the row's scale, from 1 to 15 or from -15 to -1; quantizing the scales themselves is from Dettmers
et al. 2023 (QLoRA). So a 4-bit matrix times its factors is an 8-bit matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32  # weights of a row that share a factor
MAX_FACTOR = 15  # times -8, the smallest 4-bit number, it still fits into 8 bits
CANDIDATES = (-3, -2, -1, 0, 1, 2)  # distances from the factor that just spans a group: slight clipping often helps
MIN_SCALE = 1e-30  # a scale is never 0


def to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize rows [N, K] to int8 [N, K] and scales, fp32 [N, 1]; their product approximates the rows."""
    wide = rows.float()
    scale = wide.abs().amax(-1, keepdim=True).clamp_min_(MIN_SCALE) / 127
    return (wide / scale).round_().to(torch.int8), scale


def to_int4(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize rows [N, K] to int8 from -8 to 7 [N, K], factors, int8 [N, K / GROUP], and scales, fp32 [N, 1].

    The product of the three approximates the rows. Each group gets the candidate factor with the least squared error.
    """
    wide = rows.float()
    scale = wide.abs().amax(-1, keepdim=True).clamp_min_(MIN_SCALE) / 8 / MAX_FACTOR
    groups = (wide / scale).view(len(rows), -1, GROUP)  # in units of the scale: squares neither overflow nor underflow
    peaks = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    spanning = peaks / -8  # so that the largest weight of a group is -8, for which there is no positive counterpart
    best = torch.full_like(peaks, torch.inf)
    codes, factors = torch.zeros_like(groups), torch.ones_like(peaks)
    for distance in CANDIDATES:
        size = (spanning.abs().round() + distance).clamp(1, MAX_FACTOR)
        factor = torch.where(spanning < 0, -size, size)
        quantized = (groups / factor).round_().clamp_(-8, 7)
        error = (groups - quantized * factor).square().sum(-1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        codes, factors = torch.where(better, quantized, codes), torch.where(better, factor, factors)
    return codes.to(torch.int8).flatten(1), factors.to(torch.int8).squeeze(-1), scale


def nibbles(codes: Tensor) -> Tensor:
    """Numbers from -8 to 7 [N, K] packed two per byte, the first in the low half: uint8 [N, K / 2]."""
    low, high = codes.view(torch.uint8).view(len(codes), -1, 2).unbind(-1)
    return (low & 15) | (high << 4)


def from_nibbles(pairs: Tensor) -> Tensor:
    """The inverse of ``nibbles``: numbers from -8 to 7, int8 [N, K]."""
    signed = pairs.view(torch.int8)
    return torch.stack(((signed << 4) >> 4, signed >> 4), dim=-1).flatten(1)
