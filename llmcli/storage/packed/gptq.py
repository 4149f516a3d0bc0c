"""GPTQ (Frantar et al. 2022) and AWQ (Lin et al. 2023) as AutoGPTQ, GPTQModel and AutoAWQ store them.

A weight is scale * (number - zero point); columns are grouped, and a group of a row has its scale and zero point. All
tensors are transposed: columns come first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.storage.packed.bits import in_groups, unpack_bits, unpack_floats
from llmcli.storage.packed.parts import FLOATS, INTEGERS, PackedMatrix, Parts, Rows
from llmcli.storage.packed.repack import Blocks, integer_blocks

BITS = (2, 3, 4, 8)
AWQ_BITS = 4
PER_WORD = 32 // AWQ_BITS
WORDS = ("I32", "U32")


def gptq(
    parts: Parts, *, bits: int | None, group_size: int | None, act_order: bool, zero_offset: int, varies: bool
) -> PackedMatrix:
    """A matrix by GPTQ.

    ``bits`` and ``group_size`` are those of the settings, None if they state none; -1 is one group for all columns. If
    they ``varies`` among the matrices, the shapes count. ``zero_offset`` is added to stored zero points.
    Raises LlmcliError if the tensors do not fit together, or contradict the settings.
    """
    packed_columns, rows = parts.matrix("qweight", WORDS)
    groups, packed_rows = parts.matrix("qzeros", WORDS)
    parts.check("scales", (groups, rows), FLOATS)
    implied = packed_rows * 32 // rows
    if implied not in BITS or -(-rows * implied // 32) != packed_rows:
        raise parts.fault("qzeros", f"has shape [{groups}, {packed_rows}], which does not fit {rows} rows")
    if bits is not None and bits != implied and not varies:
        raise parts.fault("qzeros", f"has {implied} bits per number, but config.json states {bits}")
    columns = packed_columns * 32 // implied
    if "g_idx" in parts:
        parts.check("g_idx", (columns,), INTEGERS)
    elif act_order and groups > 1:
        raise LlmcliError(
            f"{parts.stored[0][0].path}: tensor {parts.name}.g_idx is missing, which desc_act requires",
            "the download may be incomplete; download the model again",
        )
    size = columns if group_size in (None, -1) else group_size
    size = -(-columns // groups) if varies or group_size is None else size
    assert size is not None
    if -(-columns // size) != groups:
        raise parts.fault("scales", f"has {groups} groups, but groups of {size} of {columns} columns are stated")

    def numbers(start: int, stop: int) -> Tensor:
        words = parts.read("qweight").view(torch.int32)[:, start:stop].T.contiguous()
        return unpack_bits(words.view(torch.uint8), implied, columns)

    def order() -> Tensor | None:
        adjacent = torch.arange(columns) // size
        index = parts.read_groups("g_idx", groups) if "g_idx" in parts else adjacent
        return None if columns % groups == 0 and torch.equal(index, adjacent) else index

    def spread() -> tuple[Tensor, Tensor]:
        zeros = unpack_floats(parts.read_bytes("qzeros"), implied, rows).T.contiguous() + zero_offset
        return parts.read_float("scales").T.contiguous(), zeros

    def open_rows() -> Rows:
        (scales, zeros), index = spread(), order()

        def unpack(start: int, stop: int) -> Tensor:
            return in_groups(numbers(start, stop).float(), scales[start:stop], zeros[start:stop], index)

        return unpack

    def blocks() -> Blocks | None:
        scales, zeros = spread()
        symmetric = order() is None and bool((zeros == 2 ** (implied - 1)).all())
        return integer_blocks(numbers, implied, columns, scales) if symmetric else None

    return PackedMatrix(f"GPTQ ({implied} bits)", (rows, columns), parts, open_rows, blocks=blocks)


def awq(parts: Parts, *, group_size: int | None) -> PackedMatrix:
    """A matrix by AWQ in the layout "gemm": words of eight rows. ``group_size``: see ``gptq``.

    Raises LlmcliError if the tensors do not fit together, or contradict the settings.
    """
    columns, words = parts.matrix("qweight", WORDS)
    groups, rows = parts.matrix("scales", FLOATS)[0], words * PER_WORD
    parts.check("scales", (groups, rows), FLOATS)
    parts.check("qzeros", (groups, words), WORDS)
    size = columns if group_size == -1 else group_size or columns // groups
    if size * groups != columns:
        raise parts.fault("scales", f"has {groups} groups, but groups of {size} of {columns} columns are stated")

    def open_rows() -> Rows:
        qweight = parts.read("qweight").view(torch.int32)
        zeros, scales = _rows_of(parts.read("qzeros").view(torch.int32)), parts.read_float("scales").T.contiguous()

        def unpack(start: int, stop: int) -> Tensor:
            first, last = start // PER_WORD, -(-stop // PER_WORD)
            numbers = _rows_of(qweight[:, first:last])[start - first * PER_WORD : stop - first * PER_WORD]
            return in_groups(numbers, scales[start:stop], zeros[start:stop])

        return unpack

    return PackedMatrix(f"AWQ ({AWQ_BITS} bits)", (rows, columns), parts, open_rows)


def _rows_of(words: Tensor) -> Tensor:
    """The rows in AWQ's ``words`` [n, words]: float32 [8 words, n].

    A word has rows 0, 2, 4, 6, 1, 3, 5, 7 in its halves of bytes, from the lowest on: byte 2 a + b has rows a + 4 b in
    its lower half and a + 4 b + 2 in its upper half.
    """
    data = words.contiguous().view(torch.uint8)
    numbers = unpack_floats(data, AWQ_BITS, 2 * data.shape[1]).view(len(words), -1, 2, 2, 2)
    return numbers.permute(1, 3, 4, 2, 0).reshape(-1, len(words))
