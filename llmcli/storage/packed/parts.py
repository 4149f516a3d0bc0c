"""The stored tensors that hold one packed matrix, and the matrix as a tensor that can be read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.files.safetensors import Entry, TensorFile
from llmcli.storage.packed.repack import Blocks

PIECE = 2**20  # values unpacked at a time: they fit into the processor's cache
INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")
FLOATS = ("F64", "F32", "BF16", "F16")
EXPONENTS = ("U8", "F8_E8M0")  # 8-bit exponents: powers of two
EIGHT_BITS = ("F8_E4M3", "F8_E5M2")
NAN_EXPONENT = 255
DAMAGED = "the file may be damaged, or config.json may belong to another model"

Rows = Callable[[int, int], Tensor]  # from the first row and the one after the last to float32 [rows, ...]


class Parts:
    """The stored tensors of the matrix ``name``, by the ends of their names, such as ``qweight``."""

    def __init__(self, name: str, found: Mapping[str, tuple[TensorFile, Entry]]) -> None:
        self.name = name
        self._found = found

    def __contains__(self, end: str) -> bool:
        return end in self._found

    @property
    def stored(self) -> list[tuple[TensorFile, Entry]]:
        """The files and entries of the tensors."""
        return list(self._found.values())

    def stored_name(self, end: str) -> str:
        """The module's name in the file, of which ``end`` is a tensor."""
        return self._get(end)[1].name.removesuffix(f".{end}")

    def dtype(self, end: str) -> str:
        """The dtype of a tensor, as safetensors names it."""
        return self._get(end)[1].dtype

    def shape(self, end: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._get(end)[1].shape

    def bytes_of(self, end: str) -> int:
        """The size of a tensor in the file."""
        _, entry = self._get(end)
        return entry.end - entry.start

    def matrix(self, end: str, dtypes: Sequence[str]) -> tuple[int, int]:
        """The shape of a tensor. Raises LlmcliError unless it is a matrix of one of the ``dtypes``."""
        self.check_dtype(end, dtypes)
        shape = self.shape(end)
        if len(shape) != 2 or 0 in shape:
            raise self.fault(end, f"has shape {list(shape)}, but must be a matrix")
        return shape[0], shape[1]

    def check(self, end: str, shape: tuple[int, ...], dtypes: Sequence[str]) -> None:
        """Raise LlmcliError unless a tensor has this shape and one of the ``dtypes``."""
        self.check_dtype(end, dtypes)
        if self.shape(end) != shape:
            raise self.fault(end, f"has shape {list(self.shape(end))}, but the other tensors imply {list(shape)}")

    def check_dtype(self, end: str, dtypes: Sequence[str]) -> None:
        """Raise LlmcliError unless a tensor has one of the ``dtypes``."""
        if self.dtype(end) not in dtypes:
            raise self.fault(end, f"is stored as {self.dtype(end)} instead of {' or '.join(dtypes)}")

    def read(self, end: str) -> Tensor:
        """The tensor as stored: mapped if possible, otherwise read into memory."""
        file, entry = self._get(end)
        return file.viewed(entry)

    def read_bytes(self, end: str) -> Tensor:
        """The bytes of each row of a tensor: uint8 [rows, bytes]."""
        tensor = self.read(end).contiguous()
        return tensor.view(torch.uint8).view(tensor.shape[0], -1)

    def read_float(self, end: str) -> Tensor:
        """The tensor in float32; bytes are 8-bit exponents: powers of two, and NaN for 255."""
        tensor = self.read(end)
        if self.dtype(end) not in EXPONENTS:
            return tensor.float()
        exponents = tensor.view(torch.uint8).int()
        bits = torch.where(exponents == 0, 2**22, exponents << 23)  # 2^-127 is not a normal float
        return torch.where(exponents == NAN_EXPONENT, math.nan, bits.view(torch.float32))

    def read_groups(self, end: str, groups: int) -> Tensor:
        """The group of each column: int64 [columns]. Raises LlmcliError if there is no such group."""
        index = self.read(end).long()
        if int(index.min()) < 0 or int(index.max()) >= groups:
            wrong = int(index[(index < 0) | (index >= groups)][0])
            raise self.fault(end, f"has {wrong}, but the groups are numbered 0 to {groups - 1}")
        return index

    def not_finite(self) -> LlmcliError | None:
        """The error for the first tensor that contains NaN or infinity; None if there is none."""
        for end, (file, entry) in self._found.items():
            is_scale = entry.dtype in EXPONENTS and "scale" in end
            if not is_scale and entry.dtype not in (*FLOATS, *EIGHT_BITS):
                continue
            values = self.read_float(end)
            bad = int((~values.isfinite()).sum())
            if bad:
                return not_finite(file, entry, bad)
        return None

    def fault(self, end: str, problem: str) -> LlmcliError:
        """The error for a tensor."""
        file, entry = self._get(end)
        return LlmcliError(f"{file.path}: tensor {entry.name} {problem}", DAMAGED)

    def _get(self, end: str) -> tuple[TensorFile, Entry]:
        if end not in self._found:
            file, entry = self.stored[0]
            raise LlmcliError(
                f"{file.path}: tensor {self.name}.{end} is missing, which {entry.name} needs",
                "the download may be incomplete; download the model again",
            )
        return self._found[end]


def not_finite(file: TensorFile, entry: Entry, count: int) -> LlmcliError:
    """The error for a stored tensor, ``count`` values of which are NaN or infinite."""
    return LlmcliError(
        f"{file.path}: tensor {entry.name} contains NaN or infinity ({count} of {math.prod(entry.shape)} values)",
        "the file may be damaged: download it again",
    )


@dataclass(frozen=True)
class PackedMatrix:
    """A packed matrix: the name of its format, its shape, its stored tensors, and what unpacks its rows.

    ``open`` reads the small tensors, such as scales, and returns a function for rows. ``by_output``: the rows are the
    outputs, even in a family that stores its matrices as [in, out]. ``blocks`` reads the small tensors, too, and gives
    the same matrix as blocks, or None if no blocks have exactly these weights.
    """

    format: str
    shape: tuple[int, ...]
    parts: Parts
    open: Callable[[], Rows]
    by_output: bool = True
    blocks: Callable[[], Blocks | None] = lambda: None


class PackedFile(TensorFile):
    """A packed matrix as a tensor of float32, called ``name``; ``transposed`` gives it as [in, out]."""

    def __init__(self, name: str, matrix: PackedMatrix, *, transposed: bool) -> None:
        self.path = matrix.parts.stored[0][0].path
        self.metadata = {}
        self.matrix, self.transposed = matrix, transposed
        size = sum(entry.end - entry.start for _, entry in matrix.parts.stored)
        shape = matrix.shape[::-1] if transposed else matrix.shape
        self.entries = {name: Entry(name, matrix.format, shape, 0, size)}

    @property
    def entry(self) -> Entry:
        """The matrix as a tensor; its bytes are those of all stored tensors."""
        return next(iter(self.entries.values()))

    @cached_property
    def blocks(self) -> Blocks | None:
        """See ``PackedMatrix.blocks``."""
        return self.matrix.blocks()

    def dtype(self, entry: Entry) -> torch.dtype:
        """See ``TensorFile.dtype``."""
        return torch.float32

    def mapped(self, entries: Sequence[Entry]) -> Tensor | None:
        """See ``TensorFile.mapped``: always None."""
        return None

    def read_into(self, entry: Entry, target: Tensor, first: int = 0) -> Tensor:
        """See ``TensorFile.read_into``; ``target`` may have any dtype, to which the values are rounded."""
        if self.transposed:
            whole = torch.empty(self.matrix.shape)
            self._unpack(whole.view(-1), 0)
            target.view(-1).copy_(whole.T.reshape(-1)[first : first + target.numel()])
        else:
            self._unpack(target.view(-1), first)
        return target

    def _unpack(self, flat: Tensor, first: int) -> None:
        """Fill ``flat`` with the matrix's values from number ``first`` on."""
        rows = self.matrix.open()
        width = math.prod(self.matrix.shape[1:])
        step, last = max(PIECE // width, 1), first + len(flat)
        for start in range(first // width, -(-last // width), step):
            stop = min(start + step, -(-last // width))
            values = rows(start, stop).reshape(-1)[max(first - start * width, 0) : last - start * width]
            offset = max(start * width - first, 0)
            flat[offset : offset + len(values)] = values
