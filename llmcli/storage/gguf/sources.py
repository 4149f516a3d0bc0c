"""A model's parameters where they are stored, exactly and one at a time: for writing them in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from llmcli.errors import LlmcliError, usage_error
from llmcli.model.config import ModelConfig
from llmcli.model.families.rules import Rule, Source
from llmcli.model.transformer import Transformer
from llmcli.storage.blocks import BLOCK
from llmcli.storage.checkpoint import Checkpoint
from llmcli.storage.finite import is_finite
from llmcli.storage.ggml import PACKED, from_blocks
from llmcli.storage.gguf.weights import GgufTensors
from llmcli.storage.quantize import Quantization, format_of
from llmcli.storage.quantized_checkpoint import check_quantized, find_quantized

CPU = torch.device("cpu")


class Stored(Protocol):
    """A model's parameters by the names of ``Transformer``: their shapes, and stored tensors that the model ignores."""

    config: ModelConfig
    shapes: dict[str, tuple[int, ...]]
    unused: tuple[str, ...]

    def values(self, target: str) -> Tensor:
        """A parameter as floats, mapped if possible. Raises LlmcliError if it contains NaN or infinity."""

    def packed(self, rule: Rule, source: Source, first: int, type: str) -> Tensor | None:
        """The bytes of a source of ``rule``, an architecture's, if they are stored in blocks of ``type``; else None.

        The source fills the parameter's rows from ``first`` on.
        """


def stored_parameters(checkpoint: Checkpoint, adapter: Path | None = None) -> Stored:
    """The parameters of a model folder or a GGUF file; ``adapter`` is a LoRA's folder to merge.

    Raises the errors of ``Checkpoint.open``.
    """
    if checkpoint.quantization is None:
        return _Files(checkpoint, adapter)
    if adapter is not None:
        raise usage_error("an adapter cannot be merged into quantized weights", "name the original model")
    return _Quantized(checkpoint, checkpoint.quantization)


class _Files:
    """Weight files of a Hugging Face model, or a GGUF file."""

    def __init__(self, checkpoint: Checkpoint, adapter: Path | None) -> None:
        opened = checkpoint.open(adapter)
        self.config, self._weights = opened.config, opened.weights
        self.shapes = {name: tuple(shape) for name, shape in opened.shapes.items()}
        self.unused = opened.weights.unused
        self._rules = {rule.target: rule for rule in opened.rules}

    def values(self, target: str) -> Tensor:
        """See ``Stored.values``."""
        rule, weights = self._rules[target], self._weights
        names = [source.name for source in rule.sources]
        kept, stored = ({of(name) for name in names} for of in (weights.dtype, self._stored_dtype))
        exact = kept == stored and len(stored) == 1 and not weights.adapted.intersection(names)
        dtype = stored.pop() if exact else torch.float32
        value = weights.parameter(rule, torch.Size(self.shapes[target]), dtype, CPU)
        if not is_finite(value):
            raise weights.not_finite(rule, dtype)
        return value

    def _stored_dtype(self, name: str) -> torch.dtype:
        file, entry = self._weights.tensors[name]
        return file.dtype(entry)

    def packed(self, rule: Rule, source: Source, first: int, type: str) -> Tensor | None:
        """See ``Stored.packed``: only GGUF files have blocks, and those that write the architecture's rows."""
        if type not in PACKED or source.name not in self._weights.tensors:
            return None
        file, entry = self._weights.tensors[source.name]
        return file.blocks(entry) if isinstance(file, GgufTensors) and entry.dtype == type else None


class _Quantized:
    """A folder that ``llmcli quantize`` wrote."""

    def __init__(self, checkpoint: Checkpoint, quantization: Quantization) -> None:
        self._file, self.config = find_quantized(checkpoint.folder, checkpoint.config)
        with torch.device("meta"):
            model = Transformer(self.config)
        check_quantized(self._file, model, quantization)
        self.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self.unused: tuple[str, ...] = ()
        self._quantization = quantization

    def values(self, target: str) -> Tensor:
        """See ``Stored.values``."""
        stored = self._file.viewed(self._file.entries[target])
        if stored.dtype == torch.uint8:
            stored = from_blocks(stored, self._format(target), self.shapes[target][1])
        if not is_finite(stored):
            raise LlmcliError(f"{self._file.path}: tensor {target} contains NaN or infinity", "the file may be damaged")
        return stored

    def packed(self, rule: Rule, source: Source, first: int, type: str) -> Tensor | None:
        """See ``Stored.packed``: the rows of blocks are put into the architecture's order."""
        entry = self._file.entries[rule.target]
        if (
            not source.keeps_rows
            or entry.dtype != "U8"
            or type != self._format(rule.target)
            or self.shapes[rule.target][1] % BLOCK
        ):
            return None
        rows = self._file.viewed(entry)[first : first + source.rows]
        return source.in_file(rows, (rows.shape[1],))

    def _format(self, target: str) -> str:
        return format_of(target.removesuffix(".weight"), self._quantization)
