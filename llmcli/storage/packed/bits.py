"""Small numbers packed into bytes, and 4-bit floats."""

from __future__ import annotations

import torch
from torch import Tensor

# The 16 values of a 4-bit float with one sign, two exponent and one mantissa bits (E2M1; OCP Microscaling 1.0).
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def unpack_bits(data: Tensor, bits: int, count: int) -> Tensor:
    """The first ``count`` numbers of each row of bytes, uint8 [rows, bytes]: uint8 [rows, count].

    Each number has 1 to 8 ``bits``; the first one begins at the lowest bit of the first byte.
    """
    rows, size = data.shape
    padded = torch.nn.functional.pad(data, (0, -size % bits)).view(rows, -1, bits)  # eight numbers in ``bits`` bytes
    numbers = torch.empty(rows, padded.shape[1], 8, dtype=torch.uint8)
    for number in range(8):
        byte, shift = divmod(number * bits, 8)
        value = padded[..., byte] >> shift
        if shift + bits > 8:
            value = value | (padded[..., byte + 1] << (8 - shift))
        numbers[..., number] = value & (2**bits - 1)
    return numbers.view(rows, -1)[:, :count]


def unpack_floats(data: Tensor, bits: int, count: int) -> Tensor:
    """``unpack_bits`` in float32."""
    if bits == 4:
        return look_up(data, torch.arange(16.0))[:, :count]
    return data[:, :count].float() if bits == 8 else unpack_bits(data, bits, count).float()


def unpack_fp4(data: Tensor) -> Tensor:
    """The 4-bit floats in each row of bytes, the lower half of a byte first: float32 [rows, 2 bytes]."""
    return look_up(data, torch.tensor(FP4))


def look_up(data: Tensor, table: Tensor, *, upper_first: bool = False) -> Tensor:
    """The entries of ``table``, float32 [16], with the numbers in the halves of bytes: [..., n] -> float32 [..., 2 n].

    The lower half comes first, unless ``upper_first``.
    """
    byte = torch.arange(256)
    halves = (byte >> 4, byte & 15) if upper_first else (byte & 15, byte >> 4)
    pairs = torch.stack([table[half] for half in halves], dim=1).view(torch.float64)  # two floats that move as one
    found = pairs.view(-1).index_select(0, data.reshape(-1).int()).view(torch.float32)
    return found.view(*data.shape[:-1], 2 * data.shape[-1])


def in_groups(numbers: Tensor, scales: Tensor, zeros: Tensor | None = None, index: Tensor | None = None) -> Tensor:
    """(numbers - zeros) * scales, with ``numbers`` [rows, columns], and scales and zero points [rows, groups].

    ``index`` [columns] has the group of each column; without it, groups are adjacent columns, as many in each.
    """
    rows, columns = numbers.shape
    if index is None:
        shape = (rows, scales.shape[1], -1)
        spread, shift = scales[..., None], None if zeros is None else zeros[..., None]
    else:
        shape = (rows, columns, 1)
        spread = scales.index_select(1, index)[..., None]
        shift = None if zeros is None else zeros.index_select(1, index)[..., None]
    values = numbers.view(shape)
    values = values if shift is None else values - shift
    return (values * spread).view(rows, columns)
