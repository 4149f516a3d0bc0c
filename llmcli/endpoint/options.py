"""Sampling options by their names here -> the fields of a request, by what each kind of server is known to take.

Plain OpenAI knows few of them, and most servers pass over in silence what they do not know: what a server is not
known to take is refused here, never sent on trust.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmcli.errors import usage_error

PLAIN = {
    "temperature": "temperature",
    "top-p": "top_p",
    "presence-penalty": "presence_penalty",
    "frequency-penalty": "frequency_penalty",
    "logit-bias": "logit_bias",
    "seed": "seed",
}
_MORE = {"top-k": "top_k", "min-p": "min_p"}
_VLLM = PLAIN | _MORE | {"repetition-penalty": "repetition_penalty"}
_CPP = PLAIN | _MORE | {"repetition-penalty": "repeat_penalty"}
OFTEN = 100.0  # the most that OpenAI lets a logit be changed by; as a ban it is as good as without end


@dataclass(frozen=True)
class Kind:
    """A kind of server: ``owner`` is what its list of models says in "owned_by", ``fields`` by option."""

    name: str
    owner: str
    fields: Mapping[str, str]
    all_tokens: int = 0  # what turns top-k off there
    most_tokens: str = "max_tokens"  # of a reply in a chat


PLAIN_KIND = Kind("this server", "", PLAIN)
OPENAI = Kind("OpenAI", "", PLAIN, most_tokens="max_completion_tokens")  # known by its address; its newer models insist
# Sources: vLLM's and SGLang's protocol.py, llama.cpp's tools/server, llama-cpp-python's server/types.py and ollama's
# docs on its OpenAI-compatible part.
KINDS = (
    Kind("vLLM", "vllm", _VLLM, all_tokens=-1),
    Kind("SGLang", "sglang", _VLLM, all_tokens=-1),
    Kind("llama.cpp", "llamacpp", _CPP | {"typical-p": "typical_p", "repeat-last-n": "repeat_last_n"}),
    Kind("llama-cpp-python", "me", _CPP),
    Kind("ollama", "library", {name: field for name, field in PLAIN.items() if name != "logit-bias"}),
)


def request_fields(
    kind: Kind,
    given: Mapping[str, float],
    *,
    seed: int | None = None,
    window: int | None = None,
    biases: tuple[tuple[str, float], ...] = (),
) -> dict[str, Any]:
    """The fields that say what was ``given``, and nothing else: the rest is as the server has it.

    ``window`` is how many of the last tokens penalties count. Errors: an option that the server cannot follow.
    """
    asked: dict[str, Any] = dict(given)
    if "top-k" in asked:
        asked["top-k"] = int(asked["top-k"]) or kind.all_tokens
    asked |= {} if seed is None else {"seed": seed}
    asked |= {} if window is None else {"repeat-last-n": window}
    asked |= {"logit-bias": dict(map(_bias, biases))} if biases else {}
    for name in asked:
        if name not in kind.fields:
            knowing = [known.name for known in KINDS if name in known.fields]
            hint = f"known to: {', '.join(knowing)}" if knowing else "a model on this machine knows it"
            raise usage_error(f"{kind.name} is not known to take --{name}", f"leave it out; {hint}")
    return {kind.fields[name]: value for name, value in asked.items()}


def _bias(bias: tuple[str, float]) -> tuple[str, float]:
    token, amount = bias
    if not token.isdecimal():
        raise usage_error(f"--logit-bias {token!r}: a server takes tokens by id alone", "as in 262=+5")
    if math.isinf(amount):
        amount = -OFTEN
    if abs(amount) > OFTEN:
        raise usage_error(f"--logit-bias {token}={amount:g}: a server takes numbers from -100 to 100", "or -inf")
    return str(int(token)), amount
