"""Blocks of quantized weights: 32 weights of a row share a scale and have 8 or 4 bits each.

A block begins with its scale in fp16. In 8 bits, 32 signed integers follow; in 4 bits, 16 bytes whose lower halves are
the first 16 weights and whose upper halves are the others, each plus 8. These are the layouts of GGUF's Q8_0 and Q4_0
(llama.cpp). A row that is not a whole number of blocks ends with zeros.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Quantization = Literal["int8", "int4"]

BLOCK = 32  # weights that share a scale
BLOCK_BYTES: dict[Quantization, int] = {"int8": 2 + BLOCK, "int4": 2 + BLOCK // 2}
SPANS = (-8.6, -8.0, -7.4, -6.8)  # 4-bit codes to try for a block's largest weight: clipping it often helps the others
MAX_SCALE = torch.finfo(torch.float16).max
NO_SCALE = 1e-30  # divides where a block's scale would be 0


def row_bytes(columns: int, quantization: Quantization) -> int:
    """The bytes of a row of ``columns`` weights."""
    return -(-columns // BLOCK) * BLOCK_BYTES[quantization]


def to_blocks(rows: Tensor, quantization: Quantization) -> Tensor:
    """Quantize rows [N, K] to uint8 [N, ``row_bytes``]."""
    groups = F.pad(rows.float(), (0, -rows.shape[1] % BLOCK)).view(len(rows), -1, BLOCK)
    scale, codes = (_to_8_bits if quantization == "int8" else _to_4_bits)(groups)
    if quantization == "int4":
        low, high = (codes + 8).to(torch.uint8).chunk(2, dim=-1)
        data = low | (high << 4)
    else:
        data = codes.to(torch.int8).view(torch.uint8)
    return torch.cat((scale.view(torch.uint8), data), dim=-1).view(len(rows), -1)


def from_blocks(blocks: Tensor, quantization: Quantization, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights that ``to_blocks`` stored, [N, columns], rounded to ``dtype``."""
    scale, data = scales_of(blocks, quantization).float(), _blocks_of(blocks, quantization)[..., 2:]
    if quantization == "int4":
        codes = torch.cat((data & 15, data >> 4), dim=-1).view(torch.int8) - 8
    else:
        codes = data.contiguous().view(torch.int8)
    return (codes * scale).flatten(1)[:, :columns].to(dtype)


def scales_of(blocks: Tensor, quantization: Quantization) -> Tensor:
    """The scales in rows of blocks [N, ``row_bytes``]: fp16 [N, blocks per row, 1]."""
    return _blocks_of(blocks, quantization)[..., :2].contiguous().view(torch.float16)


def _blocks_of(rows: Tensor, quantization: Quantization) -> Tensor:
    size = BLOCK_BYTES[quantization]
    return rows.view(len(rows), rows.shape[1] // size, size)


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
