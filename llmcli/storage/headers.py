"""What a folder's weight files hold, told by their headers: no weight is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from llmcli.files.json import read_json
from llmcli.files.safetensors import Entry
from llmcli.model.config import ModelConfig
from llmcli.storage.checkpoint import find_stored, read_config
from llmcli.storage.quantize import Kind
from llmcli.storage.quantized_checkpoint import find_quantized, kind_of
from llmcli.storage.tensors import some

SCALES = (".scale", ".factors")  # beside a rounded weight


@dataclass(frozen=True)
class Headers:
    """``config`` is that of the model as it will be opened, ``dtype`` the one its weights stand for.

    ``entries`` are the tensors that hold parameters, ``others`` the rest (scales, copies, masks), which
    ``others_named`` names where they are of no use. ``kind`` says how the weights are rounded, if they are.
    """

    config: ModelConfig
    dtype: torch.dtype
    kind: Kind | None
    entries: tuple[Entry, ...]
    others: tuple[Entry, ...]
    others_named: str

    @property
    def parameters(self) -> int:
        """How many parameters the files hold: 4-bit ones lie two in a byte."""
        return sum(math.prod(entry.shape) * (2 if entry.dtype == "U8" else 1) for entry in self.entries)


def read_headers(folder: Path) -> Headers:
    """The headers of a model folder. Errors: files that are damaged, or do not belong to config.json."""
    raw, config = read_json(folder / "config.json"), read_config(folder)
    kind = kind_of(raw)
    if kind is None:
        stored, config, rules = find_stored(folder, config, scaled="quantization_config" in raw)
        entries = {name: entry for name, (_, entry) in stored.places.items()}
        wanted = {part.source for rule in rules for part in rule.parts}
        dtype = stored.dtype(rules[0].parts[0].source)
    else:
        file, config = find_quantized(folder, config)
        entries = file.entries
        wanted = {name for name in entries if not name.endswith(SCALES)}
        dtype = file.dtype(entries["norm.weight"])
    others = sorted(entries.keys() - wanted)
    return Headers(
        config=config,
        dtype=dtype,
        kind=kind,
        entries=tuple(entries[name] for name in sorted(wanted)),
        others=tuple(entries[name] for name in others),
        others_named="" if kind else some(others),
    )
