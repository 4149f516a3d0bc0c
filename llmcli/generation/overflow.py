"""What happens to a prompt that is longer than the model's context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from llmcli.errors import usage_error
from llmcli.generation.steps import roll

Overflow = Literal["error", "truncate-start", "shift"]


def fitted(ids: Sequence[int], limit: int, overflow: Overflow, *, front: int) -> list[int]:
    """A prompt of which at least one more token fits behind, in a context of ``limit``.

    "truncate-start" cuts its beginning, but for ``front`` tokens, so that a quarter of the context is free;
    "shift" does what a full context does while a text is written. Errors: "error", and it is too long.
    """
    fits = list(ids)
    if len(fits) < limit:
        return fits
    if limit < 2:
        raise usage_error(f"the model's context is {limit}: there is no room for a prompt", "use another model")
    if overflow == "error":
        raise usage_error(
            f"the prompt is {len(fits)} tokens long, but the model's context is {limit}",
            f"shorten it to at most {limit - 1} tokens, or cut its beginning with --context-overflow truncate-start",
        )
    if overflow == "shift":
        roll(fits, limit)
        return fits
    room = limit - max(limit // 4, 1)
    front = min(front, room // 2)
    return fits[:front] + fits[len(fits) - (room - front) :]
