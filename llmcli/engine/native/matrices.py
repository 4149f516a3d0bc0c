"""Matrices of a model as structures of C, whatever their format, and the tensors that these point to.

C trusts shapes, strides and dtypes, so they are checked here.
"""

from __future__ import annotations

import ctypes
from typing import TypeVar

import torch
from torch import Tensor, nn

from llmcli.engine.native.library import Matrix
from llmcli.files.gguf import BLOCKS
from llmcli.storage.ggml import MULTIPLIED, row_bytes
from llmcli.storage.quantize import QuantizedMatrix, QuantizedStack

MAX_ROWS = 16  # vectors per call
DENSE = (torch.float32, torch.bfloat16, torch.float16)
FORMATS = dict[torch.dtype | str, int](zip((*DENSE, *MULTIPLIED), range(16), strict=True))  # as ``enum format``
T = TypeVar("T")


class Matrices:
    """Describes matrices to C, and keeps what the descriptions point to."""

    def __init__(self) -> None:
        self._kept: list[object] = []

    def matrix(self, module: nn.Module, rows: int, columns: int) -> Matrix:
        """A matrix [rows, columns], whose parts, if there are several, are each other's rest."""
        parts = module.parts if isinstance(module, QuantizedStack) else (module,)
        weights = [part.get_parameter("weight").detach() for part in parts]
        assert sum(map(len, weights)) == rows
        bias = getattr(module, "bias", None)
        if bias is not None:
            assert bias.shape == (rows,)
            bias = bias.detach().float().contiguous()
        matrix, first = None, rows
        for part, weight in reversed(list(zip(parts, weights, strict=True))):
            first -= len(weight)
            rest = None if matrix is None else ctypes.addressof(self.keep(matrix))
            matrix = Matrix(
                data=self.at(weight),
                bias=None if bias is None else self.at(bias[first:]),
                rest=rest,
                stride=weight.stride(0) * weight.element_size(),
                rows=rows - first,
                stored=len(weight),
                **_stored_as(part, weight, columns),
            )
        assert matrix is not None
        return matrix

    def at(self, tensor: Tensor) -> int:
        return self.keep(tensor).data_ptr()

    def keep(self, value: T) -> T:
        """The value, which stays in memory as long as this description: C points to it."""
        self._kept.append(value)
        return value


def check_rows(matrix: Tensor, rows: int, width: int) -> None:
    """Assert that a matrix in the processor's memory has this shape, and that its rows are whole and in order."""
    assert matrix.shape == (rows, width)
    assert matrix.device.type == "cpu"
    assert matrix.stride(1) == 1
    assert matrix.stride(0) >= width


def _stored_as(module: nn.Module, weight: Tensor, columns: int) -> dict[str, int]:
    """The format of a module's weight, and the columns in it; its shape is checked."""
    if not isinstance(module, QuantizedMatrix):
        check_rows(weight, len(weight), columns)
        return {"format": FORMATS[weight.dtype], "cols": columns}
    assert module.columns == columns
    assert weight.dtype == torch.uint8
    check_rows(weight, len(weight), row_bytes(columns, module.format))
    block, _ = BLOCKS[module.format]
    return {"format": FORMATS[module.format], "cols": -(-columns // block) * block}
