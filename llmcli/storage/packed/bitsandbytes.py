"""bitsandbytes' 4 bits (QLoRA; Dettmers et al. 2023): NF4 and FP4, in blocks of all weights in a row.

A weight is one of 16 values, from a table that the file has, times the largest weight of its block. Those sizes can be
quantized, too: to 8 bits, in blocks of their own.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor

from llmcli.storage.packed.bits import in_groups, look_up
from llmcli.storage.packed.parts import FLOATS, INTEGERS, PackedMatrix, Parts, Rows

KINDS = ("nf4", "fp4")
STATE = "weight.quant_state.bitsandbytes__"
ABSMAX, TABLE = "weight.absmax", "weight.quant_map"
NESTED, NESTED_TABLE = "weight.nested_absmax", "weight.nested_quant_map"
MOST_STATE = 2**16  # bytes of a description; the usual size is 200
MOST_BLOCK = 2**20  # weights in a block; the largest in use is 4096


def four_bits(parts: Parts) -> PackedMatrix:
    """A matrix in 4 bits by bitsandbytes. Raises LlmcliError if the tensors do not fit together."""
    kind = next((kind for kind in KINDS if STATE + kind in parts), KINDS[0])
    state = _State(parts, kind)
    count = math.prod(state.shape)
    parts.check_dtype("weight", (*INTEGERS, *FLOATS))
    size = parts.bytes_of("weight")
    if size != -(-count // 2):
        raise parts.fault("weight", f"has {size} bytes, but {count} weights in 4 bits are stated")
    blocks = -(-count // state.block)
    parts.check(TABLE, (16,), FLOATS)
    parts.check(ABSMAX, (blocks,), ("U8",) if state.nested_block else FLOATS)
    if state.nested_block:
        parts.check(NESTED, (-(-blocks // state.nested_block),), FLOATS)
        parts.check(NESTED_TABLE, (256,), FLOATS)

    def open_rows() -> Rows:
        data = parts.read("weight").contiguous().view(-1).view(torch.uint8)
        table, largest = parts.read_float(TABLE), _largest(parts, state)
        columns = state.shape[1]

        def unpack(start: int, stop: int) -> Tensor:
            first, last = start * columns, stop * columns
            part = data[first // 2 : -(-last // 2)]
            values = look_up(part, table, upper_first=True)[first % 2 : first % 2 + last - first]
            if first % state.block == last % state.block == 0:
                return in_groups(values.view(1, -1), largest[None, first // state.block : last // state.block]).view(
                    -1, columns
                )
            sizes = largest.index_select(0, torch.arange(first, last) // state.block)
            return (values * sizes).view(-1, columns)

        return unpack

    return PackedMatrix(f"bitsandbytes ({kind.upper()})", state.shape, parts, open_rows)


def _largest(parts: Parts, state: _State) -> Tensor:
    """The largest size of each block's weights: float32 [blocks]."""
    if not state.nested_block:
        return parts.read_float(ABSMAX)
    numbers = parts.read(ABSMAX)
    table, sizes = parts.read_float(NESTED_TABLE), parts.read_float(NESTED)
    return table[numbers.int()] * sizes[torch.arange(len(numbers)) // state.nested_block] + state.offset


class _State:
    """What the file says about a matrix: its shape and the sizes of its blocks; 0 for blocks that are not nested.

    Raises LlmcliError if that is not valid.
    """

    def __init__(self, parts: Parts, kind: str) -> None:
        end = STATE + kind
        parts.check_dtype(end, ("U8",))
        if len(parts.shape(end)) != 1 or parts.shape(end)[0] > MOST_STATE:
            raise parts.fault(end, f"has shape {list(parts.shape(end))}, but must be a short text")
        try:
            raw: Any = json.loads(bytes(parts.read(end).tolist()))
            rows, columns = raw["shape"]
            self.shape: tuple[int, int] = (self._number(rows), self._number(columns))
            self.block = self._number(raw["blocksize"], MOST_BLOCK)
            self.nested_block = self._number(raw["nested_blocksize"], MOST_BLOCK) if NESTED in parts else 0
            self.offset = float(raw["nested_offset"]) if NESTED in parts else 0.0
            if not math.isfinite(self.offset):
                raise ValueError("nested_offset is not finite")
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
            raise parts.fault(end, f"is not a valid description: {error!r}") from error

    @staticmethod
    def _number(value: object, most: int = 2**40) -> int:
        """``value``. Raises ValueError unless it is a whole number from 1 to ``most``."""
        if type(value) is not int or not 0 < value <= most:
            raise ValueError(f"{value!r} is not a whole number from 1 to {most}")
        return value
