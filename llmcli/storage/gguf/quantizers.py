"""Weights as GGUF files store them: floats of 16 and 32 bits, and blocks of quantized weights.

Q8_0 and Q4_0 are those of ``storage.blocks``. In Q4_K and Q5_1, a group of 32 weights has a scale s and an offset m:
a weight is s q - m, with a code q of 4 or 5 bits. In Q4_K, eight groups share a super-block, in which s and m are
codes of 6 bits, in units of two scales of the super-block. In Q6_K, a super-block has 16 groups of 16 weights s q, with
q from -32 to 31, and s is a code of 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmcli.storage.blocks import MAX_SCALE, to_blocks

GROUP, GROUPS = 32, 8  # weights of a group, groups of a super-block
STRETCHES = (-0.9, -0.6, -0.3, 0.0, 0.3, 0.6, 0.9)  # tried scales put the largest weight this far beyond the last code
NEIGHBORS = tuple((scale, offset) for scale in (-1, 0, 1) for offset in (-1, 0, 1))
SPANS = (-33.0, -32.0, -31.0, -30.0)  # codes to try for the largest weight of a group, as in ``storage.blocks``
LARGEST_CODE = 63  # of scales and offsets in a super-block
TINY = 1e-30  # divides where a scale would be 0
Pair = tuple[Tensor, Tensor]  # scales and offsets


def encode(rows: Tensor, type: str) -> Tensor:
    """Rows of weights [N, K] in a GGUF type: uint8 [N, bytes of a row]. K is a multiple of the type's block."""
    return _ENCODERS[type](rows)


def _as(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda rows: rows.to(dtype).contiguous().view(torch.uint8)


def _q5_1(rows: Tensor) -> Tensor:
    groups = rows.float().reshape(-1, GROUP)
    scale, offset = map(_half, _search(groups, _importance(groups), 31, signed=True))
    codes = _codes(groups, scale, offset, 31).to(torch.uint8)
    fifth = (codes >> 4).view(-1, 4, 8) << torch.arange(8, dtype=torch.uint8)
    parts = (_bytes(scale), _bytes(-offset), fifth.sum(-1, dtype=torch.uint8), _nibbles(codes & 15))
    return torch.cat(parts, dim=-1).view(len(rows), -1)


def _q4_k(rows: Tensor) -> Tensor:
    blocks = rows.float().reshape(-1, GROUPS, GROUP)
    importance = _importance(blocks)
    scale, offset = _search(blocks, importance, 15)
    units = _unit(scale), _unit(offset)
    coded = _coded(scale, units[0]), _coded(offset, units[1])
    coded = _nearby(blocks, importance, units, coded)
    units = _fitted_units(blocks, importance, units, coded)
    codes = _codes(blocks, units[0] * coded[0], units[1] * coded[1], 15).to(torch.uint8)
    parts = (*map(_bytes, (units[0][:, 0], units[1][:, 0])), _packed(*coded), _nibbles(codes).flatten(1))
    return torch.cat(parts, dim=-1).view(len(rows), -1)


def _q6_k(rows: Tensor) -> Tensor:
    groups = rows.float().reshape(-1, 16, 16)
    scale = _scales_of_6_bits(groups, _importance(groups))
    peak = scale.gather(-2, scale.abs().argmax(-2, keepdim=True))
    unit = _half(peak / -128)
    coded = (scale / torch.where(unit == 0, TINY, unit)).round_().clamp_(-128, 127)
    codes = (_signed_codes(groups, unit * coded) + 32).to(torch.uint8).view(-1, 2, 4, 32)  # by halves, then quarters
    low = codes[:, :, :2] & 15 | (codes[:, :, 2:] & 15) << 4
    high = ((codes >> 4) << torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(4, 1)).sum(-2, dtype=torch.uint8)
    scales = coded.squeeze(-1).to(torch.int8).view(torch.uint8)
    parts = (low.flatten(1), high.flatten(1), scales, _bytes(unit[:, 0]))
    return torch.cat(parts, dim=-1).view(len(rows), -1)


def _scales_of_6_bits(groups: Tensor, importance: Tensor) -> Tensor:
    """The scales [..., 1] of groups with the least error of a few candidates, each the best one for its codes."""
    peaks = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    best = torch.full_like(peaks, torch.inf)
    scale = torch.zeros_like(peaks)
    for span in SPANS:
        codes = _signed_codes(groups, peaks / span)
        weighted = importance * codes
        squares = (weighted * codes).sum(-1, keepdim=True)
        fitted = (weighted * groups).sum(-1, keepdim=True) / squares.clamp_min(TINY)
        error = (importance * (groups - _signed_codes(groups, fitted) * fitted).square()).sum(-1, keepdim=True)
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, fitted, scale)
    return scale


def _signed_codes(groups: Tensor, scale: Tensor) -> Tensor:
    return (groups / torch.where(scale == 0, TINY, scale)).round_().clamp_(-32, 31)


_ENCODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": _as(torch.float32),
    "F16": _as(torch.float16),
    "BF16": _as(torch.bfloat16),
    "Q8_0": lambda rows: to_blocks(rows, "Q8_0"),
    "Q4_0": lambda rows: to_blocks(rows, "Q4_0"),
    "Q5_1": _q5_1,
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
}


def _importance(groups: Tensor) -> Tensor:
    """How much a weight's squared error counts, as in ``storage.blocks``, from 0 to 1 within a block."""
    importance = groups.abs() + groups.square().mean(-1, keepdim=True).sqrt()
    return importance / importance.amax(tuple(range(1, groups.ndim)), keepdim=True).clamp_min(TINY)


def _search(groups: Tensor, importance: Tensor, most: int, *, signed: bool = False) -> Pair:
    """The scale and the offset, each [..., 1], of groups [..., GROUP] whose codes are from 0 to ``most``.

    They have the least error of a few candidates, each of which is the best one for its codes. Offsets are not negative
    unless ``signed``.
    """
    low = groups.amin(-1, keepdim=True)
    low = low if signed else low.clamp_max(0)
    span = groups.amax(-1, keepdim=True) - low
    best = torch.full_like(low, torch.inf)
    scale, offset = torch.zeros_like(low), torch.zeros_like(low)
    for stretch in STRETCHES:
        tried = _fitted(groups, importance, _codes(groups, span / (most + stretch), -low, most), signed)
        error = _error(groups, importance, _codes(groups, *tried, most), tried)
        better = error < best
        best = torch.where(better, error, best)
        scale, offset = torch.where(better, tried[0], scale), torch.where(better, tried[1], offset)
    return scale, offset


def _codes(groups: Tensor, scale: Tensor, offset: Tensor, most: int) -> Tensor:
    return ((groups + offset) / torch.where(scale == 0, TINY, scale)).round_().clamp_(0, most)


def _error(groups: Tensor, importance: Tensor, codes: Tensor, pair: Pair) -> Tensor:
    """The sum of a group's squared errors, times their importance: [..., 1]."""
    return (importance * (pair[0] * codes - pair[1] - groups).square()).sum(-1, keepdim=True)


def _fitted(groups: Tensor, importance: Tensor, codes: Tensor, signed: bool) -> Pair:
    """The scale and the offset with the least error for these codes (weighted linear regression)."""

    def total(x: Tensor) -> Tensor:
        return (importance * x).sum(-1, keepdim=True)

    count, x, q = importance.sum(-1, keepdim=True), total(groups), total(codes)
    qq, xq = total(codes * codes), total(codes * groups)
    spread = count * qq - q * q
    several = spread > TINY  # different codes
    divisor = torch.where(several, spread, 1.0)
    scale = torch.where(several, (count * xq - x * q) / divisor, 0.0)
    offset = torch.where(several, (q * xq - qq * x) / divisor, -x / count.clamp_min(TINY))
    if not signed:  # an offset of 0 is the best one where it would be negative
        scale = torch.where(offset < 0, xq / qq.clamp_min(TINY), scale)
        offset = offset.clamp_min(0)
    return scale.clamp_min(0), offset


def _unit(values: Tensor) -> Tensor:
    """The unit in which a super-block's values [N, GROUPS, 1] are coded: [N, 1, 1], exact in fp16."""
    return _half(values.amax(-2, keepdim=True) / LARGEST_CODE)


def _coded(values: Tensor, unit: Tensor) -> Tensor:
    return (values / torch.where(unit == 0, TINY, unit)).round_().clamp_(0, LARGEST_CODE)


def _nearby(blocks: Tensor, importance: Tensor, units: Pair, coded: Pair) -> Pair:
    """The coded scales and offsets with the least error among these and their neighbors."""
    best = torch.full_like(coded[0], torch.inf)
    found = coded
    for steps in NEIGHBORS:
        tried = [(codes + step).clamp_(0, LARGEST_CODE) for codes, step in zip(coded, steps, strict=True)]
        pair = units[0] * tried[0], units[1] * tried[1]
        error = _error(blocks, importance, _codes(blocks, *pair, 15), pair)
        better = error < best
        best = torch.where(better, error, best)
        found = torch.where(better, tried[0], found[0]), torch.where(better, tried[1], found[1])
    return found


def _fitted_units(blocks: Tensor, importance: Tensor, units: Pair, coded: Pair) -> Pair:
    """The units with the least error for the codes of ``units``, where that is less than with ``units``."""

    def total(x: Tensor) -> Tensor:
        return (importance * x).sum((-1, -2), keepdim=True)

    def error(units: Pair) -> Tensor:
        pair = units[0] * coded[0], units[1] * coded[1]
        return _error(blocks, importance, _codes(blocks, *pair, 15), pair).sum(-2, keepdim=True)

    scaled = coded[0] * _codes(blocks, units[0] * coded[0], units[1] * coded[1], 15)
    offset = coded[1].expand_as(scaled)
    aa, ab, bb = total(scaled * scaled), total(scaled * offset), total(offset * offset)
    ax, bx = total(scaled * blocks), total(offset * blocks)
    spread = aa * bb - ab * ab
    divisor = torch.where(spread == 0, TINY, spread)
    fitted = _half((ax * bb - ab * bx) / divisor), _half((ab * ax - aa * bx) / divisor)
    better = (fitted[0] > 0) & (fitted[1] >= 0) & (error(fitted) < error(units))
    return torch.where(better, fitted[0], units[0]), torch.where(better, fitted[1], units[1])


def _packed(scale: Tensor, offset: Tensor) -> Tensor:
    """The coded scales and offsets, [N, GROUPS, 1] each, in 12 bytes: the inverse of the one in ``ggml``."""
    scales, offsets = scale.squeeze(-1).to(torch.uint8), offset.squeeze(-1).to(torch.uint8)
    parts = [codes[:, :4] | (codes[:, 4:] >> 4 << 6) for codes in (scales, offsets)]
    return torch.cat((*parts, (scales[:, 4:] & 15) | (offsets[:, 4:] & 15) << 4), dim=-1)


def _nibbles(codes: Tensor) -> Tensor:
    """Codes of 4 bits, two in a byte: the lower halves of the bytes come first. [N, K] or [N, GROUPS, GROUP]."""
    if codes.ndim == 3:  # a group's lower halves, then the next group's upper ones
        return codes[:, ::2] | codes[:, 1::2] << 4
    low, high = codes.chunk(2, dim=-1)
    return low | high << 4


def _half(values: Tensor) -> Tensor:
    """The values rounded to fp16, in float32."""
    return values.clamp(-MAX_SCALE, MAX_SCALE).half().float()


def _bytes(values: Tensor) -> Tensor:
    """Values [N, 1] as fp16: uint8 [N, 2]."""
    return values.half().contiguous().view(torch.uint8)
