"""How a text fits into the model's context: prompts that are too long, and contexts that are full."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from llmcli.errors import LlmcliError, usage_error
from llmcli.model.positions import planned_length

if TYPE_CHECKING:
    from llmcli.model.config import ModelConfig
    from llmcli.model.transformer import Transformer

Overflow = Literal["error", "truncate-start", "shift"]

LONG = 2**18  # characters that take a quarter of a second to encode
SINKS = 4  # first tokens that a rolling context keeps, because many heads rely on them (Xiao et al. 2023)


def as_ids(ids: Iterable[int], vocab_size: int) -> list[int]:
    """Return ``ids`` as a list of ints; they may come from NumPy or PyTorch.

    Raises TypeError for anything but whole numbers, and LlmcliError for ids that the model has no embedding for.
    """
    if isinstance(ids, str | bytes):
        raise TypeError(f"expected token ids, not {ids[:40]!r}; loaded.prompt_ids(text) returns the ids of a text")
    try:
        found = [operator.index(id) for id in ids]
    except TypeError as error:
        raise TypeError(f"token ids must be a sequence of whole numbers: {error}") from None
    if min(found, default=0) < 0:
        raise usage_error(f"there is no token id {min(found)}", f"ids are from 0 to {vocab_size - 1}")
    if max(found, default=0) >= vocab_size:
        raise LlmcliError(
            f"the prompt contains token {max(found)}, but the model has only {vocab_size} tokens",
            f"ids are from 0 to {vocab_size - 1}; if a tokenizer made them, it belongs to a different model",
        )
    return found


def check_text(text: str, encode: Callable[[str], Sequence[int]], limit: int, what: str, kind: str) -> None:
    """Raise LlmcliError if the beginning of a long text alone has over twice ``limit`` tokens.

    Encoding 10 MB takes ten seconds and over a gigabyte of memory. ``what`` names the text in the error of ``kind``.
    """
    length = LONG
    while length < len(text):
        if len(encode(text[:length])) > 2 * limit:
            raise usage_error(
                f"{what} has more than {2 * limit} tokens, but the model's context holds {limit}", kind=kind
            )
        length *= 2


def shorten(ids: Sequence[int], limit: int, overflow: Overflow, *, first: int) -> list[int]:
    """Fit a prompt as ``loaded.fit_prompt`` does, into ``limit`` tokens; "truncate-start" keeps the ``first`` ones."""
    ids = list(ids)
    if len(ids) < limit:
        return ids
    if limit < 2:
        raise usage_error(f"the model's context of {limit} has no room for a prompt", "use another model")
    if overflow == "error":
        raise _too_long(len(ids), limit)
    if overflow == "shift":
        roll(ids, limit)
        return ids
    room = limit - max(limit // 4, 1)
    first = min(first, room // 2)
    return ids[:first] + ids[len(ids) - (room - first) :]


def check_prompt(model: Transformer, prompt_ids: Sequence[int]) -> None:
    """Raise LlmcliError if the prompt is empty or leaves no room in the context."""
    limit = model.config.max_position_embeddings
    if len(prompt_ids) >= limit:
        raise _too_long(len(prompt_ids), limit)
    if not prompt_ids:
        raise usage_error("the prompt is empty and the model has no BOS token to start from", "give a prompt")


def _too_long(length: int, limit: int) -> Exception:
    message = f"the prompt has {length} tokens, but the model's context of {limit} has room for at most {limit - 1}"
    return usage_error(message, kind="prompt-too-long")


def roll(ids: list[int], limit: int) -> None:
    """Drop the older half of a full context in place, except for its first few tokens."""
    del ids[min(SINKS, limit // 4) : len(ids) - limit // 2]


def angle_length(config: ModelConfig, prompt: int, max_new_tokens: int) -> int:
    """The length that the angles of a text are computed for; it matters for dynamic RoPE scaling only."""
    total = min(prompt + max_new_tokens, config.max_position_embeddings)
    return planned_length(config.rope, prompt, total)
