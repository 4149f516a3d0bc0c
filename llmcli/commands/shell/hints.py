"""Hints that name options, for errors of the library, which knows none."""

from __future__ import annotations

from llmcli.errors import LlmcliError

# By ``LlmcliError.kind``.
HINTS: dict[str, str] = {}


def hint_of(error: LlmcliError) -> str:
    """The error's own hint, or the one for its kind."""
    return error.hint or HINTS.get(error.kind, "")
