"""The block formats of GGUF (llama.cpp's ggml-quants.c), restored to floating-point numbers.

A function of a format takes blocks, uint8 [N, bytes of a block], and returns their weights, float32 [N, weights of a
block]. In the formats whose names end in K, 256 weights share a scale ``d``, and groups of 16 or 32 have scales of few
bits in units of it; some also have a least weight, in units of ``dmin``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmcli.files.gguf import BLOCKS

# The 16 weights of the formats that have a table, in units of the scale: IQ4, and the 4-bit floats of MXFP4 and NVFP4.
IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def _half(data: Tensor) -> Tensor:
    """Two bytes as a float16: [N, 2] -> float32 [N, 1]."""
    return data.contiguous().view(torch.float16).float()


def _signed(data: Tensor) -> Tensor:
    return data.contiguous().view(torch.int8)


def _fields(data: Tensor, width: int, run: int) -> Tensor:
    """Fields of ``width`` bits: of each ``run`` bytes the lowest ones, then the next. [N, B] -> [N, B * 8 / width]."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8).view(1, 1, -1, 1)
    runs = data.reshape(len(data), -1, 1, run)
    return ((runs >> shifts) & ((1 << width) - 1)).flatten(1)


def _grouped(values: Tensor, scales: Tensor) -> Tensor:
    """Values times the scale of their group: [N, K], [N, groups] -> [N, groups, K / groups]."""
    return scales.unsqueeze(-1) * values.float().view(*scales.shape, -1)


def _q8_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _signed(b[:, 2:]).float()


def _q4_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * (_fields(b[:, 2:], 4, 16).float() - 8)


def _q4_1(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _fields(b[:, 4:], 4, 16).float() + _half(b[:, 2:4])


def _high_bits(b: Tensor) -> Tensor:
    """The fifth bits of 32 codes: [N, 4] -> [N, 32]."""
    return _fields(b, 1, 1)


def _q5_0(b: Tensor) -> Tensor:
    codes = _fields(b[:, 6:], 4, 16) | (_high_bits(b[:, 2:6]) << 4)
    return _half(b[:, :2]) * (codes.float() - 16)


def _q5_1(b: Tensor) -> Tensor:
    codes = _fields(b[:, 8:], 4, 16) | (_high_bits(b[:, 4:8]) << 4)
    return _half(b[:, :2]) * codes.float() + _half(b[:, 2:4])


def _q2_k(b: Tensor) -> Tensor:
    scales, codes = b[:, :16], _fields(b[:, 16:80], 2, 32)
    d, dmin = _half(b[:, 80:82]), _half(b[:, 82:84])
    least = dmin * (scales >> 4).float()
    return (_grouped(codes, d * (scales & 15).float()) - least.unsqueeze(-1)).flatten(1)


def _q3_k(b: Tensor) -> Tensor:
    """A set bit of the mask adds 4 to the code, which is from -4 to 3."""
    low, packed = _fields(b[:, 32:96], 2, 32), b[:, 96:108]
    codes = _signed(low) - 4 + 4 * _signed(_fields(b[:, :32], 1, 32))
    scales = _fields(packed[:, :8], 4, 8) | (_fields(packed[:, 8:], 2, 4) << 4)
    return _grouped(codes, _half(b[:, 108:110]) * (_signed(scales) - 32).float()).flatten(1)


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight least weights of 6 bits each: [N, 12] -> [N, 8] twice."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((first & 63, (third & 15) | ((first >> 2) & 48)), dim=1)
    least = torch.cat((second & 63, (third >> 4) | ((second >> 2) & 48)), dim=1)
    return scales, least


def _with_least(b: Tensor, codes: Tensor) -> Tensor:
    """The weights of Q4_K and Q5_K, whose blocks begin in the same way."""
    scales, least = _six_bits(b[:, 4:16])
    low = _half(b[:, 2:4]) * least.float()
    return (_grouped(codes, _half(b[:, :2]) * scales.float()) - low.unsqueeze(-1)).flatten(1)


def _q4_k(b: Tensor) -> Tensor:
    return _with_least(b, _fields(b[:, 16:], 4, 32))


def _q5_k(b: Tensor) -> Tensor:
    return _with_least(b, _fields(b[:, 48:], 4, 32) | (_fields(b[:, 16:48], 1, 32) << 4))


def _q6_k(b: Tensor) -> Tensor:
    codes = _fields(b[:, :128], 4, 64) | (_fields(b[:, 128:192], 2, 32) << 4)
    scales = _half(b[:, 208:210]) * _signed(b[:, 192:208]).float()
    return _grouped(_signed(codes) - 32, scales).flatten(1)


def _from_table(codes: Tensor, table: tuple[int, ...]) -> Tensor:
    return torch.tensor(table, dtype=torch.float32)[codes.int()]


def _iq4_nl(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _from_table(_fields(b[:, 2:], 4, 16), IQ4)


def _iq4_xs(b: Tensor) -> Tensor:
    scales = _fields(b[:, 4:8], 4, 1) | (_fields(b[:, 2:4], 2, 1) << 4)
    values = _from_table(_fields(b[:, 8:], 4, 16), IQ4)
    return _grouped(values, _half(b[:, :2]) * (_signed(scales) - 32).float()).flatten(1)


def _tq1_0(b: Tensor) -> Tensor:
    """Five weights of -1, 0 or 1 in a byte, in base 3: multiplying by 3 moves the next one to the top."""

    def digits(data: Tensor, run: int, count: int) -> Tensor:
        powers = torch.tensor([3**power for power in range(count)], dtype=torch.uint8).view(1, 1, -1, 1)
        return (data.reshape(len(data), -1, 1, run) * powers).flatten(1)

    shifted = torch.cat((digits(b[:, :32], 32, 5), digits(b[:, 32:48], 16, 5), digits(b[:, 48:52], 4, 4)), dim=1)
    return _half(b[:, 52:54]) * (((shifted.short() * 3) >> 8) - 1).float()


def _tq2_0(b: Tensor) -> Tensor:
    return _half(b[:, 64:66]) * (_fields(b[:, :64], 2, 32).float() - 1)


def _mxfp4(b: Tensor) -> Tensor:
    """The scale is a power of two: half of it, since the table has doubled values; the least two are subnormal."""
    exponent = b[:, :1].int()
    bits = torch.where(exponent < 2, 0x00200000 << exponent.clamp_max(1), (exponent - 1) << 23)
    return bits.view(torch.float32) * _from_table(_fields(b[:, 1:], 4, 16), FP4)


def _nvfp4(b: Tensor) -> Tensor:
    """Four scales, each an 8-bit float without a sign, for 16 weights each."""
    data = b[:, :4].int()
    exponent, mantissa = ((data >> 3) & 15).float(), (data & 7).float()
    scales = torch.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * torch.exp2(exponent - 7))
    scales = torch.where((data == 0) | (data == 127), 0.0, scales) * 0.5
    return _grouped(_from_table(_fields(b[:, 4:], 4, 8), FP4), scales).flatten(1)


_RESTORED: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
}
# Formats whose weights are points of large tables, which the package gguf has.
TABLES = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
PACKED = (*_RESTORED, *TABLES)
# Those in which the compiled engine multiplies, in the order of ``enum format`` in its model.h.
_IN_32 = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4")
MULTIPLIED = (*_IN_32, "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
# Where blocks have numbers in fp16, which may be NaN or infinite: the byte at which each one begins.
_HALVES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
}


def row_bytes(columns: int, format: str) -> int:
    """The bytes of a row of ``columns`` weights in blocks."""
    weights, size = BLOCKS[format]
    return -(-columns // weights) * size


def restore(data: Tensor, format: str) -> Tensor:
    """The weights in blocks of one of the formats ``PACKED``: uint8 [bytes] -> float32 [weights]."""
    if format in TABLES:
        from gguf import GGMLQuantizationType, quants

        return torch.from_numpy(quants.dequantize(data.numpy(), GGMLQuantizationType[format])).flatten()
    return _RESTORED[format](data.view(-1, BLOCKS[format][1])).flatten()


def from_blocks(rows: Tensor, format: str, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights [N, columns], rounded to ``dtype``, in rows of blocks, uint8 [N, ``row_bytes``]."""
    if not len(rows):
        return torch.empty(0, columns, dtype=dtype)
    return restore(rows.reshape(-1), format).view(len(rows), -1)[:, :columns].to(dtype)


def scales_of(rows: Tensor, format: str) -> Tensor:
    """The fp16 numbers of rows of blocks, all scales and least weights: fp16 [N, blocks per row, 1 or 2].

    Where these are finite, all weights are. Formats whose scales are always finite have none.
    """
    size = BLOCKS[format][1]
    blocks = rows.view(len(rows), rows.shape[1] // size, size)
    numbers = [blocks[..., start : start + 2].contiguous().view(torch.float16) for start in _HALVES.get(format, ())]
    return torch.cat(numbers, dim=-1) if numbers else torch.zeros(0, dtype=torch.float16)
