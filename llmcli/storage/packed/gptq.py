"""GPTQ (Frantar et al. 2022) and AWQ (Lin et al. 2023) as AutoGPTQ, GPTQModel and AutoAWQ store them.

A weight is scale * (number - zero point); columns are grouped, and a group of a row has its scale and zero point. All
tensors are transposed: columns come first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.storage.packed.bits import unpack_bits
from llmcli.storage.packed.parts import FLOATS, INTEGERS, PackedMatrix, Parts, Rows

BITS = (2, 3, 4, 8)
AWQ_BITS = 4
PER_WORD = 32 // AWQ_BITS
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where a word has the numbers of eight adjacent rows
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

    def open_rows() -> Rows:
        qweight, scales = parts.read("qweight").view(torch.int32), parts.read_float("scales")
        zeros = unpack_bits(parts.read_bytes("qzeros"), implied, rows).float() + zero_offset
        index = parts.read_groups("g_idx", groups) if "g_idx" in parts else torch.arange(columns) // size

        def unpack(start: int, stop: int) -> Tensor:
            words = qweight[:, start:stop].T.contiguous()
            numbers = unpack_bits(words.view(torch.uint8), implied, columns).float()
            return (numbers - zeros[:, start:stop].T[:, index]) * scales[:, start:stop].T[:, index]

        return unpack

    return PackedMatrix(f"GPTQ ({implied} bits)", (rows, columns), parts, open_rows)


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
        qweight, qzeros, scales = parts.read("qweight"), parts.read("qzeros"), parts.read_float("scales")
        index = torch.arange(columns) // size

        def unpack(start: int, stop: int) -> Tensor:
            first, last = start // PER_WORD, -(-stop // PER_WORD)
            inside = slice(start - first * PER_WORD, stop - first * PER_WORD)
            numbers, zeros = (_in_order(words[:, first:last])[:, inside].T for words in (qweight, qzeros))
            return (numbers - zeros[:, index]) * scales[:, start:stop].T[:, index]

        return unpack

    return PackedMatrix(f"AWQ ({AWQ_BITS} bits)", (rows, columns), parts, open_rows)


def _in_order(words: Tensor) -> Tensor:
    """The numbers in AWQ's ``words`` [n, words], in the order of the rows: float32 [n, 8 words]."""
    data = words.contiguous().view(torch.uint8)
    numbers = unpack_bits(data, AWQ_BITS, 2 * data.shape[1]).float()
    return numbers.view(len(words), -1, PER_WORD)[:, :, AWQ_ORDER].reshape(len(words), -1)
