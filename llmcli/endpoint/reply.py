"""One piece of an answer: text, tokens if they were asked for, and at the end why it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmcli.endpoint.failures import malformed
from llmcli.endpoint.tokens import Token, read_tokens


@dataclass(frozen=True)
class Usage:
    """How many tokens a server counted, where it says so."""

    prompt: int | None
    written: int | None


@dataclass(frozen=True)
class Piece:
    """``finish`` is the server's own word, None while it goes on."""

    text: str
    tokens: tuple[Token, ...]
    finish: str | None
    usage: Usage | None


def read_piece(said: Mapping[str, Any], rivals: int | None = None) -> Piece:
    """Of /completions or /chat/completions, whole or as an event; tokens with so many ``rivals``.

    Errors: another form.
    """
    choices = said.get("choices")
    if not isinstance(choices, list):
        raise malformed("it has no choices")
    usage = _usage(said.get("usage"))
    if not choices:
        return Piece("", (), None, usage)
    choice = choices[0]
    if not isinstance(choice, Mapping):
        raise malformed("a choice is no object")
    inner = choice.get("delta") or choice.get("message") or choice
    text = inner.get("text" if inner is choice else "content") if isinstance(inner, Mapping) else 0
    finish = choice.get("finish_reason")
    if not isinstance(text, str | None) or not isinstance(finish, str | None):
        raise malformed("its text is none")
    return Piece(text or "", read_tokens(choice.get("logprobs"), rivals) if rivals else (), finish, usage)


def _usage(said: Any) -> Usage | None:
    if not isinstance(said, Mapping):
        return None
    return Usage(_count(said.get("prompt_tokens")), _count(said.get("completion_tokens")))


def _count(found: Any) -> int | None:
    return found if type(found) is int and 0 <= found < 2**53 else None
