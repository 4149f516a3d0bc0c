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


def unpack_fp4(data: Tensor) -> Tensor:
    """The 4-bit floats in each row of bytes, the lower half of a byte first: float32 [rows, 2 bytes]."""
    return torch.tensor(FP4)[unpack_bits(data, 4, 2 * data.shape[1]).int()]


def by_groups(values: Tensor, scales: Tensor) -> Tensor:
    """``values`` [rows, columns] times ``scales`` [rows, groups] of adjacent columns, as many in each group."""
    rows, groups = scales.shape
    return (values.view(rows, groups, -1) * scales[..., None]).view(rows, -1)
