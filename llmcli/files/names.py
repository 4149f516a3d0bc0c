"""Names of the files in a model or adapter folder, as transformers and PEFT use them."""

from __future__ import annotations

import re
from collections.abc import Iterable

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # lists the shards of weights in several files
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# A file that holds all weights under a name of its own, as old programs for GPTQ and AWQ give it.
_NAMED = re.compile(r"(?!adapter_model|consolidated|.*-of-\d+)[\w-][\w.-]*\.safetensors")


def weights_among(names: Iterable[str]) -> str | None:
    """The file among ``names`` that holds all weights, or the index that lists the files that do; None if none does."""
    names = set(names)
    for name in (WEIGHTS, INDEX):
        if name in names:
            return name
    named = [name for name in names if _NAMED.fullmatch(name)]
    return named[0] if len(named) == 1 else None
