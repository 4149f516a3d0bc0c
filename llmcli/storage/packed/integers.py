"""Integers of few bits in rows of words: compressed-tensors' "pack-quantized", and MLX's affine groups."""

from __future__ import annotations

import torch
from torch import Tensor

from llmcli.storage.packed.bits import in_groups, unpack_bits, unpack_floats
from llmcli.storage.packed.parts import FLOATS, INTEGERS, PackedMatrix, Parts, Rows
from llmcli.storage.packed.repack import Blocks, integer_blocks

NO_ORDER = -1  # in ``weight_g_idx``: the columns of a group are adjacent


def pack_quantized(parts: Parts, *, bits: int, symmetric: bool) -> PackedMatrix:
    """A matrix of integers with ``bits`` bits by compressed-tensors: scale * (number - zero point).

    Raises LlmcliError if the tensors do not fit together.
    """
    rows, words = parts.matrix("weight_packed", ("I32",))
    parts.check("weight_shape", (2,), INTEGERS)
    shape = tuple(parts.read("weight_shape").tolist())
    rows, columns = shape
    if min(shape) < 1 or (rows, -(-columns * bits // 32)) != parts.shape("weight_packed"):
        raise parts.fault("weight_packed", f"has shape [{parts.shape('weight_packed')[0]}, {words}], which does not "
                          f"fit {rows} rows of {columns} numbers with {bits} bits")  # fmt: skip
    parts.check_dtype("weight_scale", FLOATS)
    scales = parts.shape("weight_scale")
    groups = scales[1] if len(scales) == 2 else 1
    if scales not in ((), (1,)):  # one for the whole matrix
        parts.check("weight_scale", (rows, groups), FLOATS)
    if not groups or columns % groups:
        raise parts.fault("weight_scale", f"has {groups} groups, which do not divide {columns} columns")
    if "weight_g_idx" in parts:
        parts.check("weight_g_idx", (columns,), INTEGERS)
    if not symmetric:
        _check_zero_points(parts, rows, groups, bits)

    def open_rows() -> Rows:
        data = parts.read_bytes("weight_packed")
        scales = parts.read_float("weight_scale").reshape(-1, groups).expand(rows, groups)
        zeros = 2 ** (bits - 1) + (torch.zeros(rows, groups) if symmetric else _zero_points(parts, rows, groups, bits))
        index = _column_groups(parts, groups)

        def unpack(start: int, stop: int) -> Tensor:
            numbers = unpack_floats(data[start:stop], bits, columns)
            return in_groups(numbers, scales[start:stop], zeros[start:stop], index)

        return unpack

    def blocks() -> Blocks | None:
        if not symmetric or _column_groups(parts, groups) is not None:
            return None
        data, scales = parts.read_bytes("weight_packed"), parts.read_float("weight_scale")
        scales = scales.reshape(-1, groups).expand(rows, groups)
        return integer_blocks(lambda start, stop: unpack_bits(data[start:stop], bits, columns), bits, columns, scales)

    return PackedMatrix(f"compressed-tensors (int{bits})", (rows, columns), parts, open_rows, blocks=blocks)


def _column_groups(parts: Parts, groups: int) -> Tensor | None:
    """The group of each column: int64 [columns]; None if the columns of a group are adjacent."""
    if "weight_g_idx" in parts and not bool((parts.read("weight_g_idx") == NO_ORDER).any()):
        return parts.read_groups("weight_g_idx", groups)
    return None


def _check_zero_points(parts: Parts, rows: int, groups: int, bits: int) -> None:
    """Raise LlmcliError unless the zero points have the right shape: a byte each, or packed along the rows."""
    if parts.dtype("weight_zero_point") == "I32":
        parts.check("weight_zero_point", (-(-rows * bits // 32), groups), ("I32",))
    elif parts.shape("weight_zero_point") != (1,):
        parts.check("weight_zero_point", (rows, groups), ("I8",))


def _zero_points(parts: Parts, rows: int, groups: int, bits: int) -> Tensor:
    """The zero points: float32 [rows, groups]."""
    stored = parts.read("weight_zero_point")
    if parts.dtype("weight_zero_point") != "I32":
        return stored.float().reshape(-1, groups).expand(rows, groups)
    data = stored.T.contiguous().view(torch.uint8)
    numbers = unpack_bits(data, bits, rows).T.float()
    return torch.sub(numbers, 2 ** (bits - 1))


def affine(parts: Parts, biases: str, *, bits: int, group_size: int) -> PackedMatrix:
    """A matrix by MLX: number * scale + bias, where each ``group_size`` adjacent columns share scale and bias.

    ``biases`` is the name of the tensor.
    Raises LlmcliError if the tensors do not fit together.
    """
    rows, words = parts.matrix("weight", ("U32",))
    columns = words * 32 // bits
    if columns * bits != words * 32 or columns % group_size:
        raise parts.fault("weight", f"has shape [{rows}, {words}], which is not made of groups of {group_size} numbers "
                          f"with {bits} bits")  # fmt: skip
    for end in ("scales", biases):
        parts.check(end, (rows, columns // group_size), FLOATS)

    def open_rows() -> Rows:
        data, scales, shifts = parts.read_bytes("weight"), parts.read("scales"), parts.read(biases)

        def unpack(start: int, stop: int) -> Tensor:
            numbers = unpack_floats(data[start:stop], bits, columns).view(stop - start, -1, group_size)
            scale, bias = scales[start:stop].float(), shifts[start:stop].float()
            return (numbers * scale[..., None] + bias[..., None]).view(stop - start, columns)

        return unpack

    def blocks() -> Blocks | None:
        data = parts.read_bytes("weight")
        return integer_blocks(
            lambda start, stop: unpack_bits(data[start:stop], bits, columns),
            bits,
            columns,
            parts.read_float("scales"),
            parts.read_float(biases),
        )

    return PackedMatrix(f"MLX ({bits} bits)", (rows, columns), parts, open_rows, blocks=blocks)
