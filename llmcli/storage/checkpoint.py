"""Loading a model folder or a GGUF file into a ``Transformer``, and saving a folder, strictly, one tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmcli.errors import LlmcliError, usage_error
from llmcli.files.atomic import replace_text, replacing
from llmcli.files.json import read_json
from llmcli.files.names import CONFIG, WEIGHTS
from llmcli.files.safetensors import write_tensors
from llmcli.model.config import ModelConfig
from llmcli.model.families import FAMILIES, family_of
from llmcli.model.families.gguf import architecture_of, described
from llmcli.model.families.rules import Family, Rule
from llmcli.model.transformer import Transformer
from llmcli.storage.finite import LoadNotes
from llmcli.storage.foreign_formats import check_format
from llmcli.storage.gguf.weights import GgufWeights, contents_of
from llmcli.storage.kept import keep_blocks, kept
from llmcli.storage.quantize import Quantization
from llmcli.storage.quantized_checkpoint import load_quantized, quantization_in
from llmcli.storage.tensors import WeightFiles, dtype_for, stacked_experts

Progress = Callable[[int, int], None]  # the work done and the total, such as bytes
# A dtype, a function of the stored dtype and the bytes of the model in float32, or None for the stored dtype.
DTypeChoice = torch.dtype | Callable[[torch.dtype, int], torch.dtype] | None


@dataclass(frozen=True)
class Checkpoint:
    """A model folder whose config.json has been read and validated; ``raw`` is the parsed file.

    ``folder`` may also be a GGUF file. Then ``raw`` is made from its metadata, and ``family`` has its tensors' names.
    """

    folder: Path
    raw: Mapping[str, Any]
    config: ModelConfig
    family: Family

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """Read config.json, or the header of a GGUF file.

        Raises LlmcliError if the file is missing or invalid, or a family, quantization or value is not supported.
        """
        if folder.is_file():
            return cls._read_gguf(folder)
        raw = read_json(folder / CONFIG)
        check_format(raw)
        family = family_of(raw)
        config = family.parse(raw)
        return cls(folder, raw, config, FAMILIES[config.model_type])

    @classmethod
    def _read_gguf(cls, path: Path) -> Checkpoint:
        contents = contents_of(path)
        try:
            raw = described(contents)
            family = family_of(raw)
            return cls(path, raw, family.parse(raw), architecture_of(contents).family(family, contents))
        except LlmcliError as error:  # a parser names the file that it expects
            message = error.message.removeprefix(f"{CONFIG}: ").removeprefix(f"{path}: ")
            raise LlmcliError(f"{path}: {message}", error.hint, kind=error.kind) from error

    @property
    def quantization(self) -> Quantization | None:
        """The quantization of weights that ``llmcli quantize`` wrote; None for others."""
        return quantization_in(self.raw)

    def load(
        self,
        *,
        device: torch.device,
        dtype: DTypeChoice = None,
        adapter: Path | None = None,
        build: Callable[[ModelConfig], Transformer] = Transformer,
        progress: Progress | None = None,
        notes: LoadNotes | None = None,
        restored: bool = False,
    ) -> Transformer:
        """Load the model, ready to run. ``build`` makes it from its config; ``adapter`` is a LoRA's folder to merge.

        ``dtype`` may be a function of the stored dtype, which is that of the token embedding, and of the bytes that the
        weights take in float32; None keeps it.
        Quantized weights stay quantized. Those of other programs do on a CPU where blocks hold them exactly, unless
        ``restored``, which weights to train or to quantize must be. On a CPU, tensors in the needed form are mapped and
        shared with other processes. ``notes`` are filled while the model loads.

        Raises LlmcliError, which names the file and the tensor, if a tensor is missing or misshapen, contains NaN or
        infinity, or a file is damaged.
        """
        notes = LoadNotes() if notes is None else notes
        notes.text_only = self.family.text_only
        if self.quantization is not None:
            if adapter is not None:
                raise usage_error("an adapter cannot be merged into quantized weights", "merge it first, then quantize")
            return load_quantized(
                self.folder,
                self.config,
                self.quantization,
                device=device,
                dtype=dtype,
                build=build,
                progress=progress,
                notes=notes,
            )
        opened = self.open(adapter, build)
        stored_as = opened.dtype(dtype)
        weights = opened.weights
        if device.type == "cpu" and (isinstance(weights, GgufWeights) or not restored):
            notes.kept = weights.formats(kept(weights, opened.model, opened.rules))
            filled = keep_blocks(weights, opened.model, opened.rules, stored_as, notes)
            opened = replace(opened, rules=[rule for rule in opened.rules if rule.target not in filled])

        def parameter(rule: Rule) -> Tensor:
            return opened.weights.parameter(rule, opened.shapes[rule.target], dtype_for(rule.target, stored_as), device)

        opened.fill(opened.model, parameter, progress, notes)
        opened.model.fill_constants(stored_as, device)
        return opened.model.eval()

    def open(
        self, adapter: Path | None = None, build: Callable[[ModelConfig], Transformer] = Transformer
    ) -> OpenedCheckpoint:
        """Find every parameter in the weight files, and check its name and shape; reads only headers."""
        weights, config, rules = self.locate(adapter)
        weights.check_adapter(rules)
        weights.check_constants()
        with torch.device("meta"):
            model = build(config)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        assert {rule.target for rule in rules} == shapes.keys()
        for rule in rules:
            weights.check_shape(rule, shapes[rule.target])
        return OpenedCheckpoint(weights, config, rules, model, shapes)

    def locate(self, adapter: Path | None = None) -> tuple[WeightFiles, ModelConfig, list[Rule]]:
        """The weight files, the config and the family's rules.

        The config is untied if a head is stored that differs from the embedding, as in transformers, or if the adapter
        changes one of the two. Raises LlmcliError if a tensor is missing, or a file is damaged.
        """
        family, config = self.family, self.config
        weights = self._weights(adapter)
        rules = family.rules(config)
        if config.tie_word_embeddings:
            untied = replace(config, tie_word_embeddings=False)
            stored = {rule.target: rule.sources[0].name for rule in family.rules(untied)}
            embedding, head = stored["embedding.weight"], stored["head.weight"]
            weights.find_embedding(embedding, head)
            if weights.has_own_head(embedding, head) or weights.untie(embedding, head):
                config, rules = untied, family.rules(untied)
        weights.check_names(rules, tied=config.tie_word_embeddings)
        return weights, config, rules

    def _weights(self, adapter: Path | None) -> WeightFiles:
        if not self.folder.is_file():
            return WeightFiles(self.folder, self.family, self.config, self.raw, adapter)
        if adapter is not None:
            raise usage_error(
                "an adapter cannot be merged into the weights of a GGUF file", "name the model that it was made from"
            )
        return GgufWeights(self.folder, self.family)


@dataclass(frozen=True)
class OpenedCheckpoint:
    """Where each parameter is stored; ``model`` is on the meta device, ``shapes`` are those of its parameters."""

    weights: WeightFiles
    config: ModelConfig
    rules: list[Rule]
    model: Transformer
    shapes: Mapping[str, torch.Size]

    def dtype(self, choice: DTypeChoice) -> torch.dtype:
        """The dtype to load the weights in."""
        if isinstance(choice, torch.dtype):
            return choice
        stored = self.weights.dtype(self.rules[0].sources[0].name)
        return stored if choice is None else choice(stored, 4 * sum(map(math.prod, self.shapes.values())))

    def fill(
        self, model: Transformer, parameter: Callable[[Rule], Tensor], progress: Progress | None, notes: LoadNotes
    ) -> None:
        """Replace the parameters of a model on the meta device, one at a time, with ``parameter`` of their rules.

        Raises LlmcliError if a parameter contains NaN or infinity.
        """
        notes.unused = self.weights.unused
        notes.restored = self.weights.formats(self.rules)
        notes.quantizes_activations = self.weights.quantizes_activations
        done, total = 0, sum(self.weights.nbytes(rule) for rule in self.rules)
        for rule in self.rules:
            module, _, name = rule.target.rpartition(".")
            value = parameter(rule)
            if not notes.finite(value):
                raise self.weights.not_finite(rule, value.dtype)
            setattr(model.get_submodule(module), name, torch.nn.Parameter(value, requires_grad=False))
            done += self.weights.nbytes(rule)
            if progress is not None:
                progress(done, total)


def save(model: Transformer, folder: Path, raw: Mapping[str, Any], *, dtype: torch.dtype) -> None:
    """Write the weights in the family's own layout to model.safetensors, and ``raw`` to config.json.

    Each file is written completely or not at all.
    """
    parameters = dict(model.named_parameters())
    tensors: dict[str, Tensor] = {}
    for rule in FAMILIES[model.config.model_type].rules(model.config):
        stacked = parameters[rule.target].detach().to("cpu", dtype_for(rule.target, dtype))
        rows_of = torch.split(stacked, [source.rows for source in rule.sources])
        for source, rows in zip(rule.sources, rows_of, strict=True):
            tensors[source.name] = source.in_file(rows, tuple(rows.shape[1:])).contiguous().clone()
    family = FAMILIES[model.config.model_type]
    if family.stacks_experts:
        tensors = stacked_experts(tensors)
    for name, value in family.constants:
        for layer in range(model.config.num_hidden_layers):
            tensors[name.format(layer)] = torch.tensor(value, dtype=dtype)
    raw = {**raw, "dtype": str(dtype).removeprefix("torch.")}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as file:
        write_tensors(file, tensors, {"format": "pt"})
    replace_text(folder / CONFIG, json.dumps(raw, indent=2) + "\n")
