"""generation_config.json: a model's own stop tokens and sampling settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.files.json import read_json
from llmcli.generation.filters import FILTERS, Penalty
from llmcli.model.families.fields import field, token_ids, wrong

FILE = "generation_config.json"
# Settings that change the text but that our sampler does not support, with the values at which they do nothing.
UNSUPPORTED = {
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "no_repeat_ngram_size": 0.0,
    "num_beams": 1.0,
}
UNSUPPORTED_LISTS = ("suppress_tokens", "bad_words_ids", "sequence_bias")  # these do nothing if they are empty


@dataclass(frozen=True)
class Defaults:
    """``sampling`` holds values by filter name, ``unmet`` the unsupported settings (None for a list)."""

    stop_ids: tuple[int, ...]
    sampling: dict[str, float]
    unmet: dict[str, float | None]


def read_defaults(folder: Path) -> Defaults:
    """Read the generation_config.json of ``folder``; without that file, nothing is set.

    Raises LlmcliError if the file is not valid JSON, or a value is out of range.
    """
    path = folder / FILE
    raw = read_json(path) if path.is_file() else {}
    try:
        return Defaults(token_ids(raw, "eos_token_id"), _sampling(raw), _unmet(raw))
    except LlmcliError as error:
        message = error.message.removeprefix("config.json: ")
        raise LlmcliError(f"{path}: {message}", "correct the file or remove it") from error


def _sampling(raw: dict[str, Any]) -> dict[str, float]:
    values = {}
    for name, cls in FILTERS.items():
        key = name.replace("-", "_")
        if raw.get(key) is not None:
            values[name] = field(raw, key, 0.0)
            cls(values[name])  # raises if the value is out of range
            if cls.option.whole and values[name] % 1:
                raise wrong(key, values[name], "a whole number")
    if raw.get("do_sample") is not False:
        return values
    penalties = {name: value for name, value in values.items() if issubclass(FILTERS[name], Penalty)}
    return {**penalties, "temperature": 0.0}  # greedy decoding applies penalties, but draws nothing


def _unmet(raw: dict[str, Any]) -> dict[str, float | None]:
    requested = {key: field(raw, key, neutral) for key, neutral in UNSUPPORTED.items()}
    unmet: dict[str, float | None] = {key: value for key, value in requested.items() if value != UNSUPPORTED[key]}
    return unmet | {key: None for key in UNSUPPORTED_LISTS if raw.get(key)}
