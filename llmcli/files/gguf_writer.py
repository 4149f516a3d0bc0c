"""Writing the GGUF container (llama.cpp): the header first, then each tensor at the place that the header gives it.

The header has the sizes of all tensors, so their bytes can be written in any order and piece by piece.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from llmcli.errors import LlmcliError
from llmcli.files.gguf import ALIGNMENT, BLOCKS, MAGIC, TYPES

VERSION = 3
_TYPE_NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}
# The numbers of metadata types, with their codes for ``struct``.
_UINT8, _UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64, _INT64 = 0, 4, 5, 6, 7, 8, 9, 10, 11
_CODES = {_UINT8: "B", _UINT32: "I", _INT32: "i", _FLOAT32: "f", _BOOL: "?", _UINT64: "Q", _INT64: "q"}


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write: its name, the name of its type, and its shape, rows before columns."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes that the tensor takes."""
        values, size = BLOCKS[self.type]
        return math.prod(self.shape) // values * size


def write_header(file: BinaryIO, metadata: Mapping[str, Any], tensors: Sequence[NewTensor]) -> dict[str, int]:
    """Write the header of a file with these tensors, and return the position of each tensor in the file.

    The file gets its full length; what is not written yet is zero. Metadata are texts, numbers, booleans, bytes and
    lists of one of these; numbers are written as llama.cpp expects them: whole ones in 32 bits if they fit, others as
    float32. Raises LlmcliError if a text is not valid Unicode, or a number is too large.
    """
    described, offset = [], 0
    offsets: dict[str, int] = {}
    for tensor in tensors:
        offsets[tensor.name] = offset
        columns_first = tensor.shape[::-1]
        described += [
            _text(tensor.name),
            struct.pack(f"<I{len(columns_first)}Q", len(columns_first), *columns_first),
            struct.pack("<IQ", _TYPE_NUMBERS[tensor.type], offset),
        ]
        offset += _aligned(tensor.nbytes)
    pairs = [_pair(key, value) for key, value in metadata.items()]
    header = b"".join(
        [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata)), *pairs, *described],
    )
    start = _aligned(len(header))
    file.write(header)
    file.truncate(start + offset)
    return {name: start + offset for name, offset in offsets.items()}


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _pair(key: str, value: Any) -> bytes:
    try:
        return _text(key) + _typed(value)
    except (UnicodeEncodeError, OverflowError, struct.error) as error:
        shown = f"{value!r:.60}"
        raise LlmcliError(f"a GGUF file cannot store {shown} as {key}: {error}", "correct the model's files") from error


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _typed(value: Any) -> bytes:
    """A value with the number of its type."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, bytes):
        return struct.pack("<IIQ", _ARRAY, _UINT8, len(value)) + value
    if not isinstance(value, Sequence):
        number = _number_type([value])
        return struct.pack("<I", number) + struct.pack(f"<{_CODES[number]}", value)
    if not value or isinstance(value[0], str):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))
    number = _number_type(value, usual=_INT32)
    return struct.pack("<IIQ", _ARRAY, number, len(value)) + struct.pack(f"<{len(value)}{_CODES[number]}", *value)


def _number_type(values: Sequence[Any], usual: int = _UINT32) -> int:
    """The type for all ``values``: ``usual`` for whole numbers that fit into it."""
    kinds = set(map(type, values))
    if kinds == {bool}:
        return _BOOL
    if kinds != {int}:
        return _FLOAT32
    low, high = min(values), max(values)
    for number in (usual, _UINT32, _INT32, _UINT64):
        signed, bits = number == _INT32, 64 if number == _UINT64 else 32
        if (-(2 ** (bits - 1)) if signed else 0) <= low and high < 2 ** (bits - signed):
            return number
    return _INT64
