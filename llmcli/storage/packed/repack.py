"""Packed matrices as blocks of GGUF, where those hold exactly the same weights.

A block has 32 weights of a row. In 4 bits, the lower halves of its 16 bytes are the first 16 weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 32
NAN_EXPONENT = 255
LEAST_EXPONENT = 2  # of MXFP4, for which the scale of its doubled values is a normal float


@dataclass(frozen=True)
class Blocks:
    """A matrix as blocks: their ``format``, as GGUF names it, and a function from rows to uint8 [rows, bytes]."""

    format: str
    rows: Callable[[int, int], Tensor]


def integer_blocks(
    numbers: Callable[[int, int], Tensor], bits: int, columns: int, scales: Tensor, least: Tensor | None = None
) -> Blocks | None:
    """Blocks of scale * number + least, or None if no format has them without loss.

    ``numbers`` gives rows, uint8 [rows, columns]. ``scales`` and ``least`` [rows, groups] are float32, for groups of
    adjacent columns, as many in each. Without ``least``, numbers are around the middle of their range.
    """
    formats = {4: "Q4_0", 8: "Q8_0"} if least is None else {4: "Q4_1"}
    groups = scales.shape[1]
    exact = all(torch.equal(part.half().float(), part) for part in (scales, least) if part is not None)
    if bits not in formats or not exact or columns % (groups * BLOCK):
        return None
    repeats, format = columns // groups // BLOCK, formats[bits]
    heads = [part.half().repeat_interleave(repeats, 1)[..., None] for part in (scales, least) if part is not None]

    def rows(start: int, stop: int) -> Tensor:
        data = numbers(start, stop).view(stop - start, -1, BLOCK)
        data = data ^ 128 if bits == 8 else halves(data)  # a signed byte differs from a shifted one by its top bit
        head = [part[start:stop].view(torch.uint8) for part in heads]
        return torch.cat([*head, data], dim=-1).view(stop - start, -1)

    return Blocks(format, rows)


def mxfp4_blocks(numbers: Callable[[int, int], Tensor], exponents: Tensor) -> Blocks | None:
    """Blocks of MXFP4 from rows of its numbers, uint8 [rows, columns], and the exponents, uint8 [rows, groups]."""
    if int(exponents.min()) < LEAST_EXPONENT or int(exponents.max()) == NAN_EXPONENT:
        return None

    def rows(start: int, stop: int) -> Tensor:
        data = halves(numbers(start, stop).view(stop - start, -1, BLOCK))
        return torch.cat([exponents[start:stop][..., None], data], dim=-1).view(stop - start, -1)

    return Blocks("MXFP4", rows)


def halves(numbers: Tensor) -> Tensor:
    """Numbers of 4 bits, uint8 [..., BLOCK], in the halves of bytes: [..., BLOCK / 2]."""
    first, second = numbers.chunk(2, dim=-1)
    return first | (second << 4)
