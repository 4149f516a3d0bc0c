"""Floats of 4 and 8 bits in groups that share a scale: MXFP4, MXFP8 (OCP Microscaling 1.0) and NVFP4."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmcli.storage.packed.bits import in_groups, unpack_bits, unpack_fp4
from llmcli.storage.packed.parts import EXPONENTS, FLOATS, PackedMatrix, Parts, Rows
from llmcli.storage.packed.repack import Blocks, mxfp4_blocks

MX_GROUP = 32
NV_GROUP = 16


def mxfp4(parts: Parts, values: str, scales: str) -> PackedMatrix:
    """A matrix in MXFP4, whose scales are powers of two: as in gpt-oss, by compressed-tensors or by MLX.

    ``values`` [rows, ...] and ``scales`` [rows, groups] name the tensors. Raises LlmcliError if they do not fit
    together.
    """
    shape = _check_groups(parts, values, scales, MX_GROUP, EXPONENTS)

    def open_rows() -> Rows:
        data, factors = parts.read_bytes(values), parts.read_float(scales)
        return lambda start, stop: in_groups(unpack_fp4(data[start:stop]), factors[start:stop])

    def blocks() -> Blocks | None:
        data, exponents = parts.read_bytes(values), parts.read(scales).view(torch.uint8)
        return mxfp4_blocks(lambda start, stop: unpack_bits(data[start:stop], 4, shape[1]), exponents)

    return PackedMatrix("MXFP4", shape, parts, open_rows, blocks=blocks)


def nvfp4(parts: Parts, values: str, scales: str, *, overall: str = "", divides: bool = False) -> PackedMatrix:
    """A matrix in NVFP4, whose scales are 8-bit floats: by ModelOpt, compressed-tensors or MLX.

    ``overall`` names a scale of the whole matrix, if there is one; ``divides``: the scales are divided by it.
    Raises LlmcliError if the tensors do not fit together.
    """
    shape = _check_groups(parts, values, scales, NV_GROUP, ("F8_E4M3", "U8"))
    if overall:
        parts.check_dtype(overall, FLOATS)
        if parts.shape(overall) not in ((), (1,)):
            raise parts.fault(overall, f"has shape {list(parts.shape(overall))}, but must be a single number")

    def open_rows() -> Rows:
        data, factors = parts.read_bytes(values), parts.read(scales).view(torch.float8_e4m3fn).float()
        if overall:
            factor = parts.read_float(overall).reshape(())
            factors = factors / factor if divides else factors * factor
        return lambda start, stop: in_groups(unpack_fp4(data[start:stop]), factors[start:stop])

    return PackedMatrix("NVFP4", shape, parts, open_rows)


def mxfp8(parts: Parts) -> PackedMatrix:
    """A matrix in MXFP8 by MLX: four 8-bit floats per word. Raises LlmcliError if the tensors do not fit together."""
    rows, words = parts.matrix("weight", ("U32",))
    if words * 4 % MX_GROUP:
        raise parts.fault("weight", f"has {words * 4} columns, which are not made of groups of {MX_GROUP}")
    parts.check("scales", (rows, words * 4 // MX_GROUP), EXPONENTS)

    def open_rows() -> Rows:
        data, factors = parts.read_bytes("weight").view(torch.float8_e4m3fn), parts.read_float("scales")

        def unpack(start: int, stop: int) -> Tensor:
            return in_groups(data[start:stop].float(), factors[start:stop])

        return unpack

    return PackedMatrix("MXFP8", (rows, words * 4), parts, open_rows)


def _check_groups(parts: Parts, values: str, scales: str, group: int, scale_dtypes: tuple[str, ...]) -> tuple[int, int]:
    """The shape of a matrix of 4-bit floats. Raises LlmcliError unless each ``group`` columns have a scale."""
    parts.check_dtype(values, ("U8", "U32"))
    shape = parts.shape(values)
    columns = math.prod(shape[1:]) * (2 if parts.dtype(values) == "U8" else 8)
    fits = len(shape) == 2 or (len(shape) == 3 and shape[2] * 2 == group)
    if not fits or 0 in shape or columns % group:
        raise parts.fault(values, f"has shape {list(shape)}, which is not made of groups of {group} 4-bit floats")
    parts.check(scales, (shape[0], columns // group), scale_dtypes)
    return shape[0], columns
