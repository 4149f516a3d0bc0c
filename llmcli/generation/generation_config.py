"""What a model's generation_config.json asks for: where to stop, and how to sample unless told otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.files.json import read_json
from llmcli.generation.filters import FILTERS
from llmcli.model.families.fields import field, token_ids, wrong

FILE = "generation_config.json"
# Settings that change the text and that the sampler does not have, with the value at which they do nothing.
OTHERS = {
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "no_repeat_ngram_size": 0.0,
    "num_beams": 1.0,
}
LISTS = ("suppress_tokens", "bad_words_ids", "sequence_bias")  # likewise; they do nothing where they are empty


@dataclass(frozen=True)
class Defaults:
    """``sampling`` by filter name; ``unmet`` are settings asked for that we do not have (None: a list)."""

    stop_ids: tuple[int, ...]
    sampling: dict[str, float]
    unmet: dict[str, float | None]


def read_defaults(folder: Path) -> Defaults:
    """Of the folder's generation_config.json; empty without one. Errors: broken JSON, values out of range."""
    path = folder / FILE
    raw = read_json(path) if path.is_file() else {}
    try:
        return Defaults(token_ids(raw, "eos_token_id"), _sampling(raw), _unmet(raw))
    except LlmcliError as error:
        message = error.message.removeprefix("config.json: ")
        raise LlmcliError(f"{path}: {message}", "correct the file, or remove it") from error


def _sampling(raw: dict[str, Any]) -> dict[str, float]:
    keys = {name: name.replace("-", "_") for name in FILTERS}
    values = {name: field(raw, key, 0.0) for name, key in keys.items() if raw.get(key) is not None}
    for name, value in values.items():
        FILTERS[name](value)  # checks its range
        if name == "top-k" and value % 1:
            raise wrong("top_k", value, "a whole number")
    return values if raw.get("do_sample") is not False else {**_penalties(values), "temperature": 0.0}


def _penalties(values: dict[str, float]) -> dict[str, float]:
    """Those of the settings that also count where nothing is drawn."""
    return {name: value for name, value in values.items() if name.endswith("-penalty")}


def _unmet(raw: dict[str, Any]) -> dict[str, float | None]:
    asked = {key: field(raw, key, neutral) for key, neutral in OTHERS.items()}
    unmet: dict[str, float | None] = {key: value for key, value in asked.items() if value != OTHERS[key]}
    return unmet | {key: None for key in LISTS if raw.get(key)}
