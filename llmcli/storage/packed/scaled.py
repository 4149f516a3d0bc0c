"""8-bit floats and integers with scales: of the whole tensor, of rows, or of blocks.

Of floats, as by DeepSeek, FBGEMM, ModelOpt and compressed-tensors; of integers, as by compressed-tensors and LLM.int8
(Dettmers et al. 2022).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.storage.packed.parts import DAMAGED, EIGHT_BITS, EXPONENTS, FLOATS, PackedMatrix, Parts, Rows
from llmcli.storage.packed.repack import Blocks, integer_blocks

SCALES = ("weight_scale_inv", "weight_scale")  # what to multiply a tensor by
ZERO_POINT = "weight_zero_point"


def scaled(parts: Parts, end: str, *, block: tuple[int, int], required: bool) -> PackedMatrix:
    """The tensor ``end``, ``weight`` or ``bias``, in 8 bits. ``block`` are the rows and columns that share a scale.

    Raises LlmcliError if a ``required`` scale is missing, or a scale has the wrong shape.
    """
    shape = parts.shape(end)
    if not shape or 0 in shape:
        raise parts.fault(end, f"has shape {list(shape)}, but must have rows")
    scales = [name for name in SCALES if end == "weight" and name in parts]
    if required and not scales:
        file, entry = parts.stored[0]
        raise LlmcliError(
            f"{file.path}: tensor {entry.name} is stored in 8 bits without its scale", "download it again"
        )
    zeros = [ZERO_POINT] if ZERO_POINT in parts else []
    for name in (*scales, *zeros):
        parts.check_dtype(name, (*FLOATS, *EXPONENTS, *EIGHT_BITS, "I8"))
        if _spread_kind(parts.shape(name), shape, block) is None:
            file, entry = next(found for found in parts.stored if found[1].name.endswith(name))
            raise LlmcliError(
                f"{file.path}: tensor {entry.name} has shape {list(entry.shape)}, which cannot scale a tensor of "
                f"{list(shape)}",
                "this layout of 8-bit weights is not supported",
            )

    def open_rows() -> Rows:
        tensor = parts.read(end)
        spread = [(_spread_kind(parts.shape(name), shape, block), parts.read_float(name)) for name in scales]
        moved = [(_spread_kind(parts.shape(name), shape, block), parts.read(name).float()) for name in zeros]

        def unpack(start: int, stop: int) -> Tensor:
            rows = _floats(tensor[start:stop])
            for kind, zero in moved:
                rows = rows - _spread(zero, kind, rows, start, block)
            for kind, scale in spread:
                rows = rows * _spread(scale, kind, rows, start, block)
            return rows

        return unpack

    def blocks() -> Blocks | None:
        if parts.dtype(end) != "I8" or zeros or len(scales) != 1 or len(shape) != 2:
            return None
        kind, scale = _spread_kind(parts.shape(scales[0]), shape, block), parts.read_float(scales[0])
        if kind == "blocks" and (block[0] > 1 or shape[1] % block[1]):
            return None
        scale = scale.reshape(-1, scale.shape[1] if kind == "blocks" else 1).expand(shape[0], -1)
        data = parts.read(end).view(torch.uint8)
        # Shifted from signed bytes to the middle of the range.
        return integer_blocks(lambda start, stop: data[start:stop] ^ 128, 8, shape[1], scale)

    return PackedMatrix(
        "int8" if parts.dtype(end) == "I8" else "fp8", shape, parts, open_rows, by_output=False, blocks=blocks
    )


def _floats(tensor: Tensor) -> Tensor:
    """8-bit numbers in float32: floats by a table, which is several times faster than a conversion."""
    if tensor.dtype == torch.int8:
        return tensor.float()
    table = torch.arange(256).to(torch.uint8).view(tensor.dtype).float()
    return table.index_select(0, tensor.view(torch.uint8).reshape(-1).int()).view(tensor.shape)


def _spread_kind(scale: tuple[int, ...], shape: tuple[int, ...], block: tuple[int, int]) -> str | None:
    """What a scale of this shape scales in a tensor of ``shape``: all of it, "blocks" or "rows"; None if neither."""
    if math.prod(scale) == 1:
        return "all"
    if len(shape) == 2 and scale == tuple(-(-size // length) for size, length in zip(shape, block, strict=True)):
        return "blocks"
    return "rows" if scale in ((shape[0], 1), (shape[0],)) else None


def _spread(scale: Tensor, kind: str | None, rows: Tensor, start: int, block: tuple[int, int]) -> Tensor:
    """``scale`` in a form that broadcasts to ``rows``, which begin with row ``start``."""
    if kind == "all":
        return scale.reshape(())
    if kind == "rows":
        return scale.reshape(-1)[start : start + len(rows)].view(-1, *(1,) * (rows.ndim - 1))
    scale = scale[torch.arange(start, start + len(rows)) // block[0]]
    return scale.repeat_interleave(block[1], 1)[:, : rows.shape[1]]


def llm_int8(parts: Parts) -> PackedMatrix:
    """A matrix of 8-bit integers by bitsandbytes: ``SCB`` has the largest size of each row's weights.

    Raises LlmcliError if the tensors do not fit together, or are not stored by rows.
    """
    shape = parts.matrix("weight", ("I8",))
    parts.check("SCB", shape[:1], FLOATS)
    if "weight_format" in parts and bool(parts.read("weight_format").any()):
        file, entry = parts.stored[0]
        raise LlmcliError(f"{file.path}: tensor {entry.name} is not stored by rows", DAMAGED)

    def open_rows() -> Rows:
        numbers, largest = parts.read("weight"), parts.read_float("SCB")[:, None]
        # In bitsandbytes' order of operations.
        return lambda start, stop: numbers[start:stop] * largest[start:stop] * (1 / 127)

    return PackedMatrix("bitsandbytes (int8)", shape, parts, open_rows)
