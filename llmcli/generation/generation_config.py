"""generation_config.json: a model's own stop tokens, sampling settings and limits.

No value in this file can keep a model from being used: what cannot be used is skipped, for the caller to report.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmcli import text
from llmcli.errors import LlmcliError
from llmcli.files.json import read_json
from llmcli.generation.filters import FILTERS, OPTIONS, Penalty
from llmcli.model.families import fields
from llmcli.text.surrogates import is_unicode

FILE = "generation_config.json"
MAX_NEW_TOKENS = 512  # where neither the user nor the model sets a limit
# Keys that say nothing about the text: ids that prompts are built from, what transformers returns, how it computes.
UNRELATED = frozenset(
    [
        "bos_token_id",
        "pad_token_id",
        "decoder_start_token_id",
        "transformers_version",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "output_logits",
        "return_dict_in_generate",
        "use_cache",
        "cache_implementation",
        "cache_config",
        "max_cache_len",
        "prefill_chunk_size",
        "low_memory",
        "compile_config",
        "disable_compile",
        "continuous_batching_config",
        "remove_invalid_values",
        "renormalize_logits",
        "is_assistant",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "assistant_early_exit",
        "assistant_lookbehind",
        "target_lookbehind",
        "prompt_lookup_num_tokens",
        "max_matching_ngram_size",
        "use_mtp",
        "speculation_type",
    ]
)
# Values with which unsupported keys change nothing, besides null, false, and anything empty.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "max_length": (20,),  # transformers' default, which only means that no length was chosen
    "min_length": (0,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "length_penalty": (1.0,),
    "diversity_penalty": (0.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "top_h": (1.0,),
    "penalty_alpha": (0.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "guidance_scale": (1.0,),
}


@dataclass(frozen=True)
class Defaults:
    """What a model's generation_config.json sets.

    ``sampling`` holds values by filter name. ``unmet`` are settings that llmcli does not support, ``unusable`` those
    with an invalid value: by key, with the value as text ("" for a list or an object). ``fault`` is the reason if the
    file as a whole cannot be used. ``stop`` are strings before which a text ends.
    """

    stop_ids: tuple[int, ...]
    sampling: Mapping[str, float]
    unmet: Mapping[str, str]
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    unusable: Mapping[str, str] = field(default_factory=dict)
    fault: str = ""

    def token_limit(self, given: int | None, default: int = MAX_NEW_TOKENS) -> int:
        """The most tokens to generate: those that the user has ``given``, else the model's, else ``default``."""
        return given if given is not None else self.max_new_tokens or default


def read_defaults(folder: Path, context: int | None = None) -> Defaults:
    """Read the generation_config.json of ``folder``; without that file, nothing is set. A GGUF file has end tokens.

    ``context`` is the model's in tokens, to which a ``max_length`` may be equal.
    """
    if folder.is_file():
        return Defaults(text.gguf_end_ids(text.vocabulary_of(folder)), {}, {})
    path = folder / FILE
    try:
        raw = read_json(path) if path.is_file() else {}
    except LlmcliError as error:
        return Defaults((), {}, {}, fault=error.message.removeprefix(f"{path}: "))
    return _Reader(raw).read(context)


class _Reader:
    """The keys of one file; ``unusable`` collects those whose value is invalid."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self.unusable: dict[str, str] = {}

    def read(self, context: int | None) -> Defaults:
        most, least = self._count("max_new_tokens", 1), self._count("min_new_tokens", 0)
        return Defaults(
            stop_ids=self._stop_ids(),
            sampling=self._sampling(),
            unmet=self._unmet(context),
            max_new_tokens=most,
            min_new_tokens=least or 0,
            stop=self._stop_strings(),
            unusable=self.unusable,
        )

    def _skip(self, key: str, value: Any) -> None:
        self.unusable[key] = _shown(value)

    def _stop_ids(self) -> tuple[int, ...]:
        return tuple(self._listed("eos_token_id", lambda id: type(id) is int and 0 <= id < 2**31))

    def _count(self, key: str, least: int) -> int | None:
        value = self.raw.get(key)
        if value is None or (type(value) is int and least <= value < 2**31):
            return value
        self._skip(key, value)
        return None

    def _stop_strings(self) -> tuple[str, ...]:
        return tuple(self._listed("stop_strings", lambda text: isinstance(text, str) and text and is_unicode(text)))

    def _listed(self, key: str, is_valid: Callable[[Any], Any]) -> list[Any]:
        """The valid entries of a list, which may be a single value."""
        value = self.raw.get(key)
        entries = value if isinstance(value, list) else [] if value is None else [value]
        invalid = [entry for entry in entries if not is_valid(entry)]
        if invalid:
            self._skip(key, invalid[0])
        return [entry for entry in entries if is_valid(entry)]

    def _sampling(self) -> dict[str, float]:
        draws = self.raw.get("do_sample")
        if draws is not None and not isinstance(draws, bool):
            self._skip("do_sample", draws)
        greedy = draws is False  # greedy decoding applies penalties, but draws nothing: other values do not matter
        values = {}
        unused = {name for cls in FILTERS.values() if not issubclass(cls, Penalty) for name in (cls.name, *cls.details)}
        for name, option in OPTIONS.items():
            key = name.replace("-", "_")
            if self.raw.get(key) is None or (greedy and name in unused):
                continue
            try:
                value = fields.field(self.raw, key, 0.0)
                option.check(name, value)
            except LlmcliError:
                self._skip(key, self.raw[key])
                continue
            values[name] = value
        return {**values, "temperature": 0.0} if greedy else values

    def _unmet(self, context: int | None) -> dict[str, str]:
        known = {"eos_token_id", "do_sample", "max_new_tokens", "min_new_tokens", "stop_strings"}
        known |= UNRELATED | {name.replace("-", "_") for name in OPTIONS}
        return {
            key: _shown(value)
            for key, value in self.raw.items()
            if key not in known and not key.startswith("_") and not _neutral(key, value, context)
        }


def _neutral(key: str, value: Any, context: int | None) -> bool:
    """Whether a setting changes nothing."""
    if value is None or value is False or value in ("", [], {}):
        return True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if key == "max_length" and context is not None and value >= context:
        return True
    return value in NEUTRAL.get(key, ())


def _shown(value: Any) -> str:
    """A value as short text; "" for a list or an object."""
    if isinstance(value, list | dict):
        return ""
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
