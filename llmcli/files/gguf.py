"""The GGUF container (llama.cpp): reading a file's header, which is its metadata and where each tensor is.

Every count and length is compared with the file's size before anything is stored, so a damaged file cannot ask for more
memory than it has bytes. The header is memory-mapped and read once; the tensors are not touched.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.files.formats import stand_in

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER = 2**26  # bytes: several times the header of the largest vocabularies
MAX_ELEMENTS = 2**21  # in all arrays together: a vocabulary of 262144 with its scores, types and merges has 1.3 million
MAX_KEYS, MAX_TENSORS = 2**14, 2**16
MAX_NAME = 2**16 - 1  # bytes of a key
MAX_DIMENSIONS = 4
MAX_DEPTH = 4  # of arrays in arrays
MAX_PARTS = 2**12  # files of a split model
ALIGNMENT = 32  # of tensors, unless general.alignment says otherwise
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")  # the name of one file of several

# The number of each type of tensor: its name, the values of a block and their bytes.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
}
BLOCKS = {name: (values, size) for name, values, size in TYPES.values()}

# The number of each type of metadata: its code for ``struct``. 7 are booleans, 8 strings, 9 arrays.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """A tensor in a file: the name of its type, its shape, rows before columns, and its byte range."""

    name: str
    type: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, eq=False)  # so that it can be a key: what is made from it is made once
class GgufHeader:
    """A file's metadata, as Python values, and its tensors by name."""

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


class _Damaged(ValueError):
    """What is wrong with a file."""


def read_gguf(path: Path) -> GgufHeader:
    """Read the header of a GGUF file of version 2 or 3. The last ones are kept, for the next calls.

    Raises LlmcliError if the file cannot be read, is not such a file, or contradicts itself.
    """
    with _reading(path) as found:
        return _read(path, found.st_size, found.st_mtime_ns)


def read_first_keys(path: Path) -> Mapping[str, Any]:
    """Read the metadata of a GGUF file up to its tokenizer. Raises the errors of ``read_gguf``."""
    with _reading(path) as found, _mapped(path) as data:
        return _Reader(data, found.st_size).metadata(stop="tokenizer.")


@contextmanager
def _reading(path: Path) -> Iterator[os.stat_result]:
    """The status of a file, and errors of reading it as LlmcliErrors."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for its writer
            raise _Damaged("it is not a regular file")
        if found.st_size < 24:
            raise _Damaged("it is too short for a header")
        yield found
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise damaged(path, problem) from error


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def damaged(path: Path, problem: object) -> LlmcliError:
    """The error for a file that is not the GGUF file that it should be."""
    other = None if is_gguf(path) else stand_in(path)
    return other or LlmcliError(
        f"{path}: not a complete GGUF file: {problem}", "it may be truncated or damaged: download it again"
    )


def is_gguf(path: Path) -> bool:
    """Whether ``path`` is a file that begins as GGUF files do."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):  # ValueError: an invalid character in the path
        return False


def first_name(name: str) -> str:
    """The name of the first file of the model that a file's name is of: ``name`` itself, unless it is a later part."""
    match = PART.fullmatch(name)
    is_part = match is not None and 0 < int(match[2]) <= int(match[3]) <= MAX_PARTS
    return f"{match[1]}-00001-of-{match[3]}.gguf" if match and is_part else name


def part_names(first: str) -> list[str]:
    """The names of all files of the model whose first file has a name, in order: only that one, unless it is split."""
    match = PART.fullmatch(first)
    if match is None or int(match[2]) != 1 or int(match[3]) > MAX_PARTS:
        return [first]
    return [f"{match[1]}-{number:05}-of-{match[3]}.gguf" for number in range(1, int(match[3]) + 1)]


def first_part(path: Path) -> Path:
    """The first file of the model that ``path`` is a part of, if it is there; otherwise ``path``."""
    first = path.with_name(first_name(path.name))
    return first if first.is_file() else path


def parts_of(header: GgufHeader) -> list[Path]:
    """The files of the model whose first file has this header: only that one, unless the model is split.

    Raises LlmcliError if the header is that of another part, or a part is missing.
    """
    count, path = header.metadata.get("split.count", 1), header.path
    if type(count) is not int or count < 2:
        return [path]
    named = path if PART.fullmatch(path.name) else path.resolve()  # a link may have any name
    names = part_names(first_name(named.name))
    if len(names) != count:
        raise LlmcliError(
            f"{path}: is one of {count} parts, but its name does not say which", "give the parts their original names"
        )
    missing = [name for name in names if not (named.parent / name).is_file()]
    if missing:
        what = f"{missing[0]} is" if len(missing) == 1 else f"{len(missing)} parts are"
        more = "" if len(missing) == 1 else f", such as {missing[0]}"
        raise LlmcliError(f"{path}: the model has {count} parts, but {what} missing{more}", "download all parts")
    if named.name != names[0]:
        number = names.index(named.name) + 1
        raise LlmcliError(f"{path}: is part {number} of {count}", f"open {names[0]}, which leads to the others")
    return [path, *(named.parent / name for name in names[1:])]


@lru_cache(maxsize=8)  # the parts of a model: only the first is large
def _read(path: Path, size: int, changed: int) -> GgufHeader:  # a file of another size or time is read again
    with _mapped(path) as data:
        return _Reader(data, size).header(path)


class _Reader:
    """Reads a header from its beginning; ``at`` is the position of the next byte."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data, self.size, self.at = data, size, 0
        self.version = self.count = 0  # of the format, and the number of tensors
        self.limit = min(size, MAX_HEADER)
        self.elements = MAX_ELEMENTS

    def header(self, path: Path) -> GgufHeader:
        metadata = self.metadata()
        return GgufHeader(path, self.version, metadata, self.tensors(self.count, self.alignment(metadata)))

    def metadata(self, stop: str | None = None) -> dict[str, Any]:
        """All keys, or those before the first one that begins with ``stop``."""
        if self.take(4) != MAGIC:
            raise _Damaged("it does not begin with GGUF")
        self.version = self.number("I")
        if self.version not in VERSIONS:
            swapped = int.from_bytes(self.version.to_bytes(4, "little"), "big") in VERSIONS
            problem = "its bytes are in big-endian order" if swapped else f"its version is {self.version}, not 2 or 3"
            raise _Damaged(problem)
        self.count, keys = self.number("Q"), self.number("Q")
        if self.count > MAX_TENSORS or keys > MAX_KEYS:
            raise _Damaged(f"it claims to have {self.count} tensors and {keys} keys")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self.string(MAX_NAME)
            if stop is not None and key.startswith(stop):
                break
            if key in metadata:
                raise _Damaged(f"the key {key!r:.80} occurs twice")
            metadata[key] = self.value(self.number("I"))
        return metadata

    def alignment(self, metadata: Mapping[str, Any]) -> int:
        value = metadata.get("general.alignment", ALIGNMENT)
        if type(value) is not int or not 0 < value <= 2**20 or value & (value - 1):
            raise _Damaged(f"general.alignment is {value!r:.40}, not a power of 2")
        return value

    def tensors(self, count: int, alignment: int) -> dict[str, GgufTensor]:
        described = [self.described() for _ in range(count)]
        start = -(-self.at // alignment) * alignment
        found: dict[str, GgufTensor] = {}
        for name, type, shape, offset, size in described:
            if offset % alignment:
                raise _Damaged(f"tensor {name!r:.80} begins at {offset}, which is not a multiple of {alignment}")
            if start + offset + size > self.size:
                raise _Damaged(f"tensor {name!r:.80} ends beyond the end of the file")
            if name in found:
                raise _Damaged(f"tensor {name!r:.80} occurs twice")
            found[name] = GgufTensor(name, type, shape, start + offset, start + offset + size)
        for first, second in itertools.pairwise(sorted(found.values(), key=lambda tensor: tensor.start)):
            if first.end > second.start:
                raise _Damaged(f"tensors {first.name!r:.80} and {second.name!r:.80} overlap")
        return found

    def described(self) -> tuple[str, str, tuple[int, ...], int, int]:
        """The name, type, shape, offset and bytes of the next tensor."""
        name, dimensions = self.string(MAX_NAME), self.number("I")
        if not name.isprintable():
            raise _Damaged(f"tensor {name!r:.80} has a name with control characters")
        if not 0 < dimensions <= MAX_DIMENSIONS:
            raise _Damaged(f"tensor {name!r:.80} has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]  # the file has columns before rows
        type, offset = self.number("I"), self.number("Q")
        if type not in TYPES:
            raise _Damaged(f"tensor {name!r:.80} has the unknown type {type}")
        known, values, size = TYPES[type]
        if not all(shape) or shape[-1] % values:
            raise _Damaged(f"tensor {name!r:.80} has shape {list(shape)}, which {known} cannot store")
        return name, known, shape, offset, math.prod(shape) // values * size

    def value(self, type: int, depth: int = 0) -> Any:
        if type == _STRING:
            return self.string(self.limit)
        if type != _ARRAY:
            return self.numbers(type, 1)[0]
        inner, count = self.number("I"), self.number("Q")
        self.elements -= count
        if self.elements < 0 or depth == MAX_DEPTH:
            raise _Damaged("its arrays claim to be too long" if depth < MAX_DEPTH else "its arrays are too deep")
        if inner == _STRING:
            return self.strings(count)
        if inner == _ARRAY:
            return [self.value(_ARRAY, depth + 1) for _ in range(count)]
        return self.numbers(inner, count)

    def numbers(self, type: int, count: int) -> list[Any]:
        if type not in _NUMBERS:
            raise _Damaged(f"it has metadata of the unknown type {type}")
        code = f"<{count}{_NUMBERS[type]}"
        values = struct.unpack(code, self.take(struct.calcsize(code)))
        return [bool(value) for value in values] if type == _BOOL else list(values)

    def number(self, code: str) -> int:
        value: int = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]
        return value

    def string(self, most: int) -> str:
        length = self.number("Q")
        if length > most:
            raise _Damaged(f"it has a text that claims to be {length} bytes long")
        return self.take(length).decode()

    def strings(self, count: int) -> list[str]:
        """``count`` strings, in one loop: vocabularies have hundreds of thousands."""
        self.check(8 * count)
        data, at, limit = self.data, self.at, self.limit
        texts: list[str] = []
        append, from_bytes = texts.append, int.from_bytes
        for _ in range(count):
            start = at + 8
            at = start + from_bytes(data[at:start], "little")
            if at > limit:
                raise self.too_long()
            append(data[start:at].decode())
        self.at = at
        return texts

    def take(self, length: int) -> bytes:
        self.check(length)
        start, self.at = self.at, self.at + length
        return self.data[start : self.at]

    def check(self, length: int) -> None:
        if self.at + length > self.limit:
            raise self.too_long()

    def too_long(self) -> _Damaged:
        return _Damaged("it ends within its header" if self.limit == self.size else "its header is too long")
