"""What a folder's weight files contain, by their headers: no weights are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from llmcli.files.safetensors import Entry
from llmcli.model.config import ModelConfig
from llmcli.model.transformer import Transformer
from llmcli.storage.checkpoint import Checkpoint
from llmcli.storage.kept import kept as matrices_kept
from llmcli.storage.quantize import Quantization, name_of
from llmcli.storage.quantized_checkpoint import check_quantized, dtype_of, find_quantized
from llmcli.storage.tensors import summarize


@dataclass(frozen=True)
class Headers:
    """The stored tensors of a model, and the model that they describe.

    ``config`` is that of the model as it loads, ``dtype`` the dtype of its weights' values, ``quantization`` how the
    weights are quantized, if they are. ``entries`` are the tensors that hold parameters, ``others`` the remaining ones
    (scales, copies, masks); ``others_named`` lists those that are not used. ``parameters`` is how many numbers that are
    used the ``entries`` hold. ``kept`` are the bytes of the parameters that stay in blocks on a CPU, and ``blocks`` the
    formats of these blocks.
    """

    config: ModelConfig
    dtype: torch.dtype
    quantization: Quantization | None
    entries: tuple[Entry, ...]
    others: tuple[Entry, ...]
    others_named: str
    parameters: int
    kept: Mapping[str, int]
    blocks: str | None

    @property
    def stored(self) -> tuple[Entry, ...]:
        """Every tensor in the files, once: an adapter may turn one into both the embedding and the head."""
        return tuple(dict.fromkeys((*self.entries, *self.others)))


def read_headers(checkpoint: Checkpoint, adapter: Path | None = None) -> Headers:
    """Read the headers of a model folder's weight files, for a model into which ``adapter`` is merged, if any.

    Raises LlmcliError if a file is damaged or does not match config.json.
    """
    quantization = checkpoint.quantization
    kept: dict[str, int] = {}
    blocks: str | None = None
    if quantization is None:
        weights, config, rules = checkpoint.locate(adapter)
        entries = {name: entry for name, (_, entry) in weights.tensors.items()}
        wanted = {source.name for rule in rules for source in rule.sources}
        dtype = weights.dtype(rules[0].sources[0].name)
        unused = {source.name: source.skipped for rule in rules for source in rule.sources}  # rows
        shapes = {name: entries[name].shape for name in wanted}
        parameters = sum(math.prod(shape) - unused[name] * math.prod(shape[1:]) for name, shape in shapes.items())
        with torch.device("meta"):
            model = Transformer(config)
        packed = matrices_kept(weights, model, rules)
        kept = {rule.target: weights.blocks_nbytes(rule) for rule in packed}
        blocks = name_of({weights.block_format(source) or "" for rule in packed for source in rule.sources})
    else:
        file, config = find_quantized(checkpoint.folder, checkpoint.config)
        entries = file.entries
        wanted = set(entries)
        with torch.device("meta"):
            model = Transformer(config)
        check_quantized(file, model, quantization)
        dtype = dtype_of({name: file.viewed(entry) for name, entry in entries.items()})
        parameters = sum(parameter.numel() for parameter in model.parameters())
    others = sorted(entries.keys() - wanted)
    return Headers(
        config=config,
        dtype=dtype,
        quantization=quantization,
        entries=tuple(entries[name] for name in sorted(wanted)),
        others=tuple(entries[name] for name in others),
        others_named="" if quantization else summarize(others),
        parameters=parameters,
        kept=kept,
        blocks=blocks,
    )
