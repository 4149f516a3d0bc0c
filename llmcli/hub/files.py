"""The files that make up a model: the only ones that are ever downloaded from the hub."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from llmcli.errors import LlmcliError
from llmcli.files.formats import other_weights
from llmcli.files.json import read_json
from llmcli.files.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, INDEX, WEIGHTS, weights_among

_SMALL = re.compile(
    r"config\.json|generation_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt"
    r"|tokenizer[\w.-]*\.json|tokenizer\.model|chat_template\.jinja|chat_template\.json|adapter_config\.json"
    r"|quantize_config\.json|quant_config\.json|hf_quant_config\.json"
)
_SHARD = re.compile(r"[\w-][\w.-]*\.safetensors")


def small_files(names: Collection[str]) -> list[str]:
    """The config, tokenizer and chat template files among the files of a repo."""
    return sorted(name for name in names if _SMALL.fullmatch(name))


def weight_files(names: Collection[str]) -> list[str]:
    """The weights, or the index that lists them, among the files of a repo.

    Raises LlmcliError if there are none that llmcli can read.
    """
    found_weights = weights_among(names)
    main = [] if found_weights is None else [found_weights]
    adapter = [ADAPTER_WEIGHTS] if {ADAPTER_WEIGHTS, ADAPTER_CONFIG} <= set(names) else []
    found = main + adapter
    if not found:
        other = other_weights(name for name in names if "/" not in name)
        raise LlmcliError(
            f"its weights are {other}, and llmcli reads only safetensors and GGUF files"
            if other
            else f"it contains no {WEIGHTS}",
            "look for a version with safetensors or GGUF files",
        )
    if main and CONFIG not in names:
        raise LlmcliError("it contains no config.json", "llmcli reads models in the layout of transformers")
    return found


def shards(index: Path) -> list[str]:
    """The files that an index lists. Raises LlmcliError if it is damaged, or lists files in other folders."""
    try:
        listed = read_json(index)["weight_map"].values()
        names = sorted(set(listed))
    except (LlmcliError, KeyError, TypeError, AttributeError):
        names = []
    if not names or not all(isinstance(name, str) and _SHARD.fullmatch(name) for name in names):
        raise LlmcliError(f"{INDEX} lists no shards", "the model's files may be damaged")
    return names


def is_complete(folder: Path, *, without_tokenizer: bool = False) -> bool:
    """Whether the folder contains a complete model (config, weights, and a tokenizer if it has one), or an adapter."""

    def exist(*names: str) -> bool:
        return all((folder / name).is_file() for name in names)

    if exist(CONFIG) and (without_tokenizer or exist("tokenizer.json")):
        if weights_among(path.name for path in folder.iterdir() if path.is_file()) not in (None, INDEX):
            return True
        try:
            return exist(INDEX) and exist(*shards(folder / INDEX))
        except LlmcliError:
            return False
    return exist(ADAPTER_WEIGHTS, ADAPTER_CONFIG)
