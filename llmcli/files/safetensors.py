"""The safetensors container: reading a file's header, reading or memory-mapping single tensors, and writing a file.

A mapped tensor is read when it is used. Writing needs no memory beyond the tensors themselves and a copy of one.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.files.formats import stand_in

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
INTEGERS = {  # of quantized weights and of token ids
    "I8": torch.int8,
    "U8": torch.uint8,
    "I64": torch.int64,
}
MAX_HEADER = 2**23  # bytes: a hundred times the usual size, but quick to parse


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its dtype, as safetensors names it, its shape, and its byte range."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def split(self, names: Iterable[str]) -> Iterator[Entry]:
        """The tensors that are stacked along the first dimension, with a name for each."""
        size = (self.end - self.start) // max(self.shape[0], 1)
        for number, name in zip(range(self.shape[0]), names, strict=True):
            start = self.start + number * size
            yield Entry(name, self.dtype, self.shape[1:], start, start + size)


class TensorFile:
    """A file's ``entries`` by tensor name, and its ``metadata``.

    ``also`` are dtypes to support in addition to ``DTYPES``, by safetensors' names. Raises LlmcliError if the file is
    damaged.
    """

    def __init__(self, path: Path, also: Mapping[str, torch.dtype] | None = None) -> None:
        self.path = path
        self._dtypes = {**DTYPES, **(also or {})}
        self.entries: dict[str, Entry] = {}
        self.metadata: dict[str, str] = {}
        try:
            self._read_header()
        except (SafetensorError, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise self._damaged(error) from error
        self._bytes: Tensor | None = None

    def _read_header(self) -> None:
        if not stat.S_ISREG(self.path.stat().st_mode):  # opening a pipe would wait for its writer
            raise ValueError("it is not a regular file")
        with self.path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER:
                raise ValueError(f"its header claims to be {length} bytes long")
            header = file.read(length)
        with safe_open(self.path, framework="pt"):  # the library checks for overlaps, gaps and the file's length
            pass
        tensors: dict[str, Any] = json.loads(header)
        self.metadata = tensors.pop("__metadata__", None) or {}
        for name, entry in tensors.items():
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            self.entries[name] = Entry(name, entry["dtype"], tuple(entry["shape"]), start, end)

    def _damaged(self, error: object) -> LlmcliError:
        return stand_in(self.path) or LlmcliError(
            f"{self.path}: not a complete safetensors file: {error}",
            "it may be truncated or damaged: download it again",
        )

    def dtype(self, entry: Entry) -> torch.dtype:
        """The entry's torch dtype. Raises LlmcliError if it is not supported."""
        if entry.dtype not in self._dtypes:
            raise LlmcliError(
                f"{self.path}: tensor {entry.name} is stored as {entry.dtype}", "supported: " + ", ".join(self._dtypes)
            )
        return self._dtypes[entry.dtype]

    def supporting(self, also: Mapping[str, torch.dtype]) -> TensorFile:
        """The same file, with dtypes to support in addition."""
        file = copy.copy(self)
        file._dtypes = {**self._dtypes, **also}
        return file

    def read(self, entry: Entry) -> Tensor:
        """Read the tensor into new memory, on the CPU."""
        return self.read_into(entry, torch.empty(entry.shape, dtype=self.dtype(entry)))

    def read_into(self, entry: Entry, target: Tensor, first: int = 0) -> Tensor:
        """Read the tensor's values from number ``first`` on into ``target``, until it is full.

        ``target`` is contiguous, on the CPU, and has the stored dtype.
        Raises LlmcliError if the file is truncated or unreadable.
        """
        assert target.dtype == self.dtype(entry)
        assert first + target.numel() <= math.prod(entry.shape)
        numpy: Any = target.view(-1).view(torch.uint8).numpy()
        view = memoryview(numpy)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(entry.start + first * target.itemsize)
                while view:
                    count = file.readinto(view)
                    if not count:
                        raise self._damaged("unexpected end of file")
                    view = view[count:]
        except OSError as error:
            raise LlmcliError(f"{self.path}: cannot be read: {error.strerror or error}", "check the disk") from error
        return target

    def viewed(self, entry: Entry) -> Tensor:
        """The tensor, mapped if possible, otherwise read: for a single use."""
        mapped = self.mapped([entry])
        return self.read(entry) if mapped is None else mapped

    def mapped(self, entries: Sequence[Entry]) -> Tensor | None:
        """Adjacent tensors as one memory-mapped tensor, stacked along the first dimension.

        None if they are not adjacent in this order, not aligned to their dtype, or single numbers.
        """
        first, dtype = entries[0], self.dtype(entries[0])
        adjacent = all(a.end == b.start and a.dtype == b.dtype for a, b in itertools.pairwise(entries))
        if not adjacent or not first.shape or first.start % dtype.itemsize:
            return None
        if self._bytes is None:
            size = self.path.stat().st_size
            self._bytes = torch.from_file(str(self.path), shared=False, size=size, dtype=torch.uint8)
        shape = (sum(entry.shape[0] for entry in entries), *first.shape[1:])
        return self._bytes[first.start : entries[-1].end].view(dtype).view(shape)


def write_tensors(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write ``tensors``, from any device, to a file whose header begins with the metadata. Raises OSError.

    Each tensor is aligned to its dtype, so that it can be memory-mapped. safetensors' own function copies all tensors
    in memory, of which a long context may leave little, and an incomplete file stays if the process is killed.
    """
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))
    names = {dtype: name for name, dtype in {**DTYPES, **INTEGERS}.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        offsets = [end, end + tensor.nbytes]
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        end = offsets[1]
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for tensor in tensors.values():
        bits: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        file.write(memoryview(bits))
