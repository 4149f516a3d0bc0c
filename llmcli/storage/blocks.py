"""Quantizing to blocks: 32 weights of a row share a scale and have 8 or 4 bits each.

The formats are Q8_0 and Q4_0 of GGUF (llama.cpp). A block begins with its scale in fp16. In Q8_0, 32 signed integers
follow; in Q4_0, 16 bytes whose lower halves are the first 16 weights and whose upper halves are the others, each plus
8. A row that is not a whole number of blocks ends with zeros.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32  # weights that share a scale
SPANS = (-8.6, -8.0, -7.4, -6.8)  # 4-bit codes to try for a block's largest weight: clipping it often helps the others
MAX_SCALE = torch.finfo(torch.float16).max
NO_SCALE = 1e-30  # divides where a block's scale would be 0


def to_blocks(rows: Tensor, format: str) -> Tensor:
    """Quantize rows [N, K] to uint8 [N, bytes per row], in the format Q8_0 or Q4_0."""
    assert format in ("Q8_0", "Q4_0")
    groups = F.pad(rows.float(), (0, -rows.shape[1] % BLOCK)).view(len(rows), -1, BLOCK)
    scale, codes = (_to_8_bits if format == "Q8_0" else _to_4_bits)(groups)
    if format == "Q4_0":
        low, high = (codes + 8).to(torch.uint8).chunk(2, dim=-1)
        data = low | (high << 4)
    else:
        data = codes.to(torch.int8).view(torch.uint8)
    return torch.cat((scale.view(torch.uint8), data), dim=-1).view(len(rows), -1)


def _to_8_bits(groups: Tensor) -> tuple[Tensor, Tensor]:
    """The scale, fp16 [..., 1], and the codes, from -127 to 127, of groups [..., BLOCK]: the largest weight is 127."""
    scale = _as_scale(groups.abs().amax(-1, keepdim=True) / 127)
    return scale, _codes(groups, scale, -127, 127)


def _to_4_bits(groups: Tensor) -> tuple[Tensor, Tensor]:
    """The scale, fp16 [..., 1], and the codes, from -8 to 7, with the least error among a few candidates.

    Squared errors count as much as their weight's size and the block's root mean square together: the large weights
    matter more than their number, and the small ones are not lost. The largest weight is negative in units of the
    scale, for which there is one more code. Each candidate's scale is the best one for its codes.
    """
    importance = groups.abs() + groups.square().mean(-1, keepdim=True).sqrt()
    peaks = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    best = torch.full_like(peaks, torch.inf)
    scale, codes = torch.zeros_like(peaks, dtype=torch.float16), torch.zeros_like(groups)
    for span in SPANS:
        tried = _codes(groups, _as_scale(peaks / span), -8, 7)
        weighted = importance * tried
        squares = (weighted * tried).sum(-1, keepdim=True).clamp_min(NO_SCALE)
        fitted = _as_scale((weighted * groups).sum(-1, keepdim=True) / squares)
        tried = _codes(groups, fitted, -8, 7)
        error = (importance * (groups - tried * fitted.float()).square()).sum(-1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        scale, codes = torch.where(better, fitted, scale), torch.where(better, tried, codes)
    return scale, codes


def _as_scale(scale: Tensor) -> Tensor:
    return scale.clamp(-MAX_SCALE, MAX_SCALE).to(torch.float16)


def _codes(groups: Tensor, scale: Tensor, least: int, most: int) -> Tensor:
    """The groups in whole units of the scale."""
    wide = scale.float()
    return (groups / torch.where(wide == 0, NO_SCALE, wide)).round_().clamp_(least, most)
