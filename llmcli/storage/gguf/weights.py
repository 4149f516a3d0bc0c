"""The weights of a GGUF file, as ``Checkpoint`` reads them: matrices stay in blocks, other tensors are restored.

A file has one tensor for all experts of a layer; here each expert has its own, such as
``blk.0.experts.3.ffn_gate.weight``. So it is for what makes the heads' keys and values from a latent vector.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.files.gguf import BLOCKS, GgufTensor, damaged, parts_of, read_gguf
from llmcli.files.safetensors import Entry, TensorFile
from llmcli.model.families.gguf_apertus import CURVE
from llmcli.model.families.gguf_contents import Contents
from llmcli.model.families.rules import Family, Rule, Source
from llmcli.storage.ggml import MULTIPLIED, PACKED, TABLES, restore
from llmcli.storage.tensors import MAX_EXPERTS, WeightFiles

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
EXPERTS = re.compile(r"(blk\.\d+\.)(ffn_\w+)_exps\.(weight|bias)")
HEADS = re.compile(r"(blk\.\d+\.)(attn_[kv]_b)\.weight")
PIECE = 2**18  # weights restored at a time; a multiple of every block


class GgufTensors(TensorFile):
    """A GGUF file's tensors; those in blocks are read as float32."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._dtypes = {**FLOATS, **dict.fromkeys(PACKED, torch.float32)}
        self.entries = {entry.name: entry for tensor in read_gguf(path).tensors.values() for entry in _entries(tensor)}
        self.metadata = {}
        self._bytes: Tensor | None = None

    def _damaged(self, error: object) -> LlmcliError:
        return damaged(self.path, error)

    def blocks(self, entry: Entry) -> Tensor:
        """The memory-mapped bytes of a tensor in blocks: uint8 [rows, bytes]."""
        if self._bytes is None:
            size = self.path.stat().st_size
            self._bytes = torch.from_file(str(self.path), shared=False, size=size, dtype=torch.uint8)
        return self._bytes[entry.start : entry.end].view(math.prod(entry.shape[:-1]), -1)

    def read_into(self, entry: Entry, target: Tensor, first: int = 0) -> Tensor:
        """See ``TensorFile.read_into``; ``first`` is the beginning of a block."""
        if entry.dtype not in PACKED:
            return super().read_into(entry, target, first)
        weights, size = BLOCKS[entry.dtype]
        data = self.blocks(entry).view(-1)[first // weights * size :]
        for start in range(0, target.numel(), PIECE):
            piece = target.view(-1)[start : start + PIECE]
            begin, end = start // weights * size, (start + len(piece)) // weights * size
            piece.copy_(restore(data[begin:end], entry.dtype))
        return target

    def mapped(self, entries: Sequence[Entry]) -> Tensor | None:
        """See ``TensorFile.mapped``; None for tensors in blocks, too."""
        return None if entries[0].dtype in PACKED else super().mapped(entries)


class LayerNumbers(TensorFile):
    """The numbers in a GGUF file's metadata that each layer has one of, as tensors."""

    def __init__(self, path: Path, numbers: Mapping[str, float]) -> None:
        self.path, self._numbers = path, numbers
        self._dtypes = FLOATS
        self.entries = {name: Entry(name, "F32", (1,), 0, 4) for name in numbers}
        self.metadata = {}

    def read_into(self, entry: Entry, target: Tensor, first: int = 0) -> Tensor:
        """See ``TensorFile.read_into``."""
        return target.fill_(self._numbers[entry.name])

    def mapped(self, entries: Sequence[Entry]) -> None:
        """See ``TensorFile.mapped``."""


def _curves(metadata: Mapping[str, object]) -> dict[str, float]:
    """What makes a learned activation, by the names of tensors."""
    numbers = {}
    for key, name in CURVE.items():
        values = metadata.get(key)
        for layer, value in enumerate(values if isinstance(values, list) else []):
            if type(value) is float:
                numbers[f"blk.{layer}.{name}"] = value
    return numbers


def _entries(tensor: GgufTensor) -> Iterator[Entry]:
    """The tensor or, if it is that of all experts or heads, the tensor of each."""
    experts, heads = EXPERTS.fullmatch(tensor.name), HEADS.fullmatch(tensor.name)
    entry = Entry(tensor.name, tensor.type, tensor.shape, tensor.start, tensor.end)
    if (
        tensor.name.endswith(".ffn_gate_inp_shexp.weight") and len(tensor.shape) == 1
    ):  # old files have its only row as a vector
        yield replace(entry, shape=(1, *tensor.shape))
        return
    if heads is not None and len(tensor.shape) == 3 and tensor.shape[0] <= MAX_EXPERTS:
        yield from entry.split(f"{heads[1]}heads.{head}.{heads[2]}.weight" for head in range(tensor.shape[0]))
        return
    if experts is None or len(tensor.shape) < 2 or tensor.shape[0] > MAX_EXPERTS:
        yield entry
        return
    layer, name, suffix = experts.groups()
    names, count = [name], tensor.shape[0]
    if name == "ffn_gate_up" and len(tensor.shape) == 3 and tensor.shape[1] % 2 == 0:
        names = ["ffn_gate", "ffn_up"]
        entry = replace(entry, shape=(2 * count, tensor.shape[1] // 2, tensor.shape[2]))
    yield from entry.split(f"{layer}experts.{number}.{name}.{suffix}" for number in range(count) for name in names)


class GgufWeights(WeightFiles):
    """The tensors of a GGUF file, or of all files of a split one; no adapter can change them."""

    config_name = "the metadata"

    def __init__(self, path: Path, family: Family) -> None:
        self.folder, self.family = path, family
        self.settings, self.stated_dtype = None, torch.bfloat16
        self.adapter, self.adapted = None, frozenset()
        self.unused: tuple[str, ...] = ()
        self.tensors: dict[str, tuple[TensorFile, Entry]] = {}
        header = read_gguf(path)
        for file in (*map(GgufTensors, parts_of(header)), LayerNumbers(path, _curves(header.metadata))):
            for entry in file.entries.values():
                self._add(entry.name, file, entry, None)
        self._check_tables()

    def _check_tables(self) -> None:
        """Raise LlmcliError if weights need the tables of the package gguf, and it is not installed."""
        needed = sorted({entry.dtype for _, entry in self.tensors.values()}.intersection(TABLES))
        if needed and find_spec("gguf") is None:
            raise LlmcliError(f"{self.folder}: weights in {', '.join(needed)} need another package", "pip install gguf")

    def dtype(self, name: str) -> torch.dtype:
        """See ``WeightFiles.dtype``: blocks are restored to bfloat16."""
        _, entry = self.tensors[name]
        return torch.bfloat16 if entry.dtype in PACKED else super().dtype(name)

    def block_format(self, source: Source) -> str | None:
        """See ``WeightFiles.block_format``."""
        _, entry = self.tensors[source.name]
        return entry.dtype if entry.dtype in MULTIPLIED and source.keeps_rows else None

    def formats(self, rules: Iterable[Rule]) -> tuple[str, ...]:
        """The block formats in which the parameters of ``rules`` are stored."""
        found = {self.tensors[source.name][1].dtype for rule in rules for source in rule.sources}
        return tuple(sorted(found.intersection(PACKED)))

    def blocks(self, source: Source) -> Tensor:
        """See ``WeightFiles.blocks``: mapped if the file has the rows in this order."""
        file, entry = self.tensors[source.name]
        assert isinstance(file, GgufTensors)
        rows = file.blocks(entry)
        return rows if source.as_stored else rows[source.arranged_rows()]


def contents_of(path: Path) -> Contents:
    """What the GGUF file, or the first of several, says about its model. Raises the errors of ``read_gguf``."""
    header = read_gguf(path)
    files = [GgufTensors(part) for part in parts_of(header)]
    found = {name: (file, entry) for file in files for name, entry in file.entries.items()}

    def values(name: str) -> list[float]:
        file, entry = found[name]
        numbers: list[float] = file.read(entry).flatten().tolist()
        return numbers

    return Contents(header.metadata, {name: entry.shape for name, (_, entry) in found.items()}, values)
