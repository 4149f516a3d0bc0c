"""Log probabilities of tokens in both of OpenAI's forms, and those of a prompt's own tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from llmcli.explain.report import GeneratedToken
from llmcli.generation.distribution import leading, log_probabilities, rank
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.score import predictions

Entry = dict[str, Any]  # a token in the form of chats, with its id
LEAST = -9999.0  # OpenAI's log probability of a token with probability 0


def token_entry(token: GeneratedToken) -> Entry:
    """A generated token with its rank, 0 for the most probable one, and its alternatives."""
    top = [entry(each.id, each.text, each.bytes, log(each.prob)) for each in token.top]
    return entry(token.id, token.text, token.bytes, token.logprob) | {"rank": token.rank, "top_logprobs": top}


def prompt_entries(loaded: LoadedModel, ids: Sequence[int], alternatives: int) -> Iterator[list[Entry]]:
    """Yield a prompt's tokens, a few at a time: each but the first, which has no context, with its alternatives.

    Runs the model.
    """

    def known(id: int, logprob: float | None) -> Entry:
        return entry(id, loaded.tokenizer.token_text(id), loaded.tokenizer.token_bytes(id), logprob)

    yield [known(id, None) | {"rank": None, "top_logprobs": []} for id in ids[:1]]
    if len(ids) < 2:
        return
    for logits, targets in predictions(loaded.model, ids):
        found = []
        logps = log_probabilities(logits).cpu()
        for row, logp, id in zip(logits.cpu(), logps, targets.tolist(), strict=True):
            top = [known(other, finite(float(logp[other]))) for other in leading(row, alternatives).tolist()]
            found.append(known(id, finite(float(logp[id]))) | {"rank": rank(row, id), "top_logprobs": top})
        yield found


def entry(id: int | None, text: str, data: bytes, logprob: float | None) -> Entry:
    """A token or an alternative; ``logprob`` is None for the first token of a prompt."""
    return {"token": text, "logprob": logprob, "bytes": list(data), "id": id}


def log(prob: float) -> float:
    """The natural logarithm of a probability; LEAST for 0."""
    return math.log(prob) if prob > 0 else LEAST


def finite(logprob: float) -> float:
    """A log probability; LEAST for that of 0, which JSON does not have."""
    return max(logprob, LEAST)


def completion_logprobs(tokens: Sequence[Entry], start: int) -> dict[str, Any]:
    """The form of completions for tokens whose text begins after ``start`` characters."""
    offsets = []
    for token in tokens:
        offsets.append(start)
        start += characters(token)
    return {
        "tokens": [written(token) for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [
            {written(other): other["logprob"] for other in token["top_logprobs"]} or None for token in tokens
        ],
        "text_offset": offsets,
        "content": list(tokens),  # the form of chats, which keeps ids and bytes
    }


def characters(token: Entry) -> int:
    """The number of characters that a token has by itself."""
    return len(bytes(token["bytes"]).decode("utf-8", "ignore"))


def written(token: Entry) -> str:
    """A token's text; incomplete characters as bytes, so that they stay distinct."""
    data = bytes(token["bytes"])
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
