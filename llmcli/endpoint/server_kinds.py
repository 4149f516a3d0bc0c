"""Which sampling settings each kind of server supports, and the request fields that carry them.

OpenAI's own API has few of them, and most servers silently ignore fields that they do not know. So a setting that a
server is not known to support is an error here, never sent on trust.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmcli.errors import LlmcliError, usage_error
from llmcli.generation.filters import OPTIONS
from llmcli.text.thinking import NO_EFFORT, SWITCHES

OPENAI_FIELDS = {
    "temperature": "temperature",
    "top-p": "top_p",
    "presence-penalty": "presence_penalty",
    "frequency-penalty": "frequency_penalty",
    "logit-bias": "logit_bias",
    "seed": "seed",
}
_MORE_FILTERS = {"top-k": "top_k", "min-p": "min_p"}
_WINDOWS = ("repeat-last-n", "dry-sequence-breaker")
_VLLM_FIELDS = OPENAI_FIELDS | _MORE_FILTERS | {"repetition-penalty": "repetition_penalty"}
_LLMCLI_FIELDS = OPENAI_FIELDS | {name: name.replace("-", "_") for name in (*OPTIONS, *_WINDOWS)}
_LLAMA_CPP_FIELDS = OPENAI_FIELDS | _MORE_FILTERS | {"repetition-penalty": "repeat_penalty"}
_MIROSTAT_FIELDS = {"mirostat-tau": "mirostat_tau", "mirostat-eta": "mirostat_eta"}
# These have the same names there, with underscores.
_LLAMA_CPP_ONLY = (
    "repeat-last-n",
    "typical-p",
    "dynatemp-range",
    "dynatemp-exponent",
    "top-n-sigma",
    "xtc-probability",
    "xtc-threshold",
    "dry-multiplier",
    "dry-base",
    "dry-allowed-length",
    "dry-penalty-last-n",
)
EFFORT = "medium"  # how much a server that takes a word for it thinks when thinking is on
MAX_BIAS = 100.0  # OpenAI's limit; -100 bans a token as well as -inf does


@dataclass(frozen=True)
class ServerKind:
    """A kind of server: ``owner`` is the "owned_by" of its models, ``fields`` maps settings to request fields."""

    name: str
    owner: str
    fields: Mapping[str, str]
    top_k_off: int = 0  # the value that turns top-k off
    max_tokens_field: str = "max_tokens"  # in chat requests
    thinking: Literal["template", "effort"] | None = None  # how to turn thinking on and off in chat requests
    budget_field: str = ""  # the most tokens of thoughts
    mirostat_field: str = ""  # the version of Mirostat: 2, or 0 to turn it off


UNKNOWN_KIND = ServerKind("this server", "", OPENAI_FIELDS)
# Recognized by its address. Its newer models accept only this field for the length.
OPENAI = ServerKind("OpenAI", "", OPENAI_FIELDS, max_tokens_field="max_completion_tokens", thinking="effort")
# Sources: protocol.py of vLLM and SGLang, tools/server of llama.cpp, server/types.py of llama-cpp-python, and ollama's
# documentation of its OpenAI-compatible API.
KINDS = (
    ServerKind("llmcli", "llmcli", _LLMCLI_FIELDS, thinking="template", budget_field="think_budget"),
    ServerKind("vLLM", "vllm", _VLLM_FIELDS, top_k_off=-1, thinking="template"),
    ServerKind("SGLang", "sglang", _VLLM_FIELDS, top_k_off=-1, thinking="template"),
    ServerKind(
        "llama.cpp",
        "llamacpp",
        _LLAMA_CPP_FIELDS
        | _MIROSTAT_FIELDS
        | {name: name.replace("-", "_") for name in _LLAMA_CPP_ONLY}
        | {"dry-sequence-breaker": "dry_sequence_breakers"},
        mirostat_field="mirostat",
        thinking="template",
        budget_field="thinking_budget_tokens",
    ),
    ServerKind("llama-cpp-python", "me", _LLAMA_CPP_FIELDS | _MIROSTAT_FIELDS, mirostat_field="mirostat_mode"),
    ServerKind(
        "ollama",
        "library",
        {name: field for name, field in OPENAI_FIELDS.items() if name != "logit-bias"},
        thinking="effort",
    ),
)


def request_fields(
    kind: ServerKind,
    settings: Mapping[str, float],
    *,
    seed: int | None = None,
    window: int | None = None,
    biases: tuple[tuple[str, float], ...] = (),
    breakers: tuple[str, ...] | None = None,
) -> dict[str, Any]:
    """Return the request fields for ``settings`` and nothing else, so that the server's own defaults apply.

    ``window`` is the number of recent tokens that penalties consider, ``breakers`` the texts that DRY stops at. Raises
    LlmcliError if the server is not known to support a setting.
    """
    requested: dict[str, Any] = {name: int(x) if OPTIONS[name].whole else x for name, x in settings.items()}
    if "top-k" in requested:
        requested["top-k"] = requested["top-k"] or kind.top_k_off
    requested |= {} if seed is None else {"seed": seed}
    requested |= {} if window is None else {"repeat-last-n": window}
    requested |= {} if breakers is None else {"dry-sequence-breaker": list(breakers)}
    requested |= {"logit-bias": dict(map(_bias_by_id, biases))} if biases else {}
    for name in requested:
        if name not in kind.fields:
            supporting = [known.name for known in KINDS if name in known.fields]
            hint = f"supported by: {', '.join(supporting)}" if supporting else "supported for models on this machine"
            raise usage_error(f"{kind.name} is not known to support {name}", f"omit it; {hint}")
    fields = {kind.fields[name]: value for name, value in requested.items()}
    if kind.mirostat_field and "mirostat-tau" in requested:
        fields[kind.mirostat_field] = 2 if requested["mirostat-tau"] else 0
    return fields


def thinking_fields(kind: ServerKind, on: bool | None, budget: int | None) -> dict[str, Any]:
    """Return the fields of a chat request that turn thinking on or off, and limit its tokens.

    Raises LlmcliError if the server is not known to support it.
    """
    fields: dict[str, Any] = {}
    if on is not None and kind.thinking is None:
        raise _no_thinking(kind, "turn thinking on or off", [known for known in KINDS if known.thinking])
    if budget is not None and not kind.budget_field:
        raise _no_thinking(kind, "limit thoughts", [known for known in KINDS if known.budget_field])
    if on is not None and kind.thinking == "template":  # each template reads one of them
        fields["chat_template_kwargs"] = dict.fromkeys(SWITCHES, on)
    elif on is not None:
        fields["reasoning_effort"] = EFFORT if on else NO_EFFORT
    return fields if budget is None else {**fields, kind.budget_field: budget}


def _no_thinking(kind: ServerKind, what: str, supporting: Sequence[ServerKind]) -> LlmcliError:
    names = ", ".join(known.name for known in supporting)
    return usage_error(f"{kind.name} is not known to {what} by request", f"supported by: {names}")


def _bias_by_id(bias: tuple[str, float]) -> tuple[str, float]:
    token, amount = bias
    if not token.isdecimal():
        raise usage_error(f"logit bias of {token!r}: a server accepts only token ids", "as in 262=+5")
    if math.isinf(amount):
        amount = -MAX_BIAS
    if abs(amount) > MAX_BIAS:
        raise usage_error(
            f"logit bias of token {token} must be from -100 to 100 for a server, not {amount:g}", "-inf bans the token"
        )
    return str(int(token)), amount
