"""Removing the API key from a text that arrives in pieces: a server may echo it split between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from llmcli.endpoint.address import HIDDEN, MIN_SECRET, ApiKey
from llmcli.endpoint.response import ResponseChunk
from llmcli.endpoint.tokens import ServerToken

Tokens = tuple[ServerToken, ...]
HIDDEN_TOKEN = ServerToken(HIDDEN, HIDDEN.encode(), None, None, ())


class KeyFilter:
    """Replaces the key in the text and the tokens of chunks; what may be the beginning of the key is held back.

    The tokens that spell the key become one, whose probability is unknown.
    """

    def __init__(self, key: ApiKey | None) -> None:
        self._key = "" if key is None or len(key.value) < MIN_SECRET else key.value
        self._text = ""
        self._tokens: Tokens = ()

    def feed(self, chunk: ResponseChunk) -> ResponseChunk:
        """Return ``chunk`` preceded by the text held back before, and without the text to hold back now."""
        if not self._key:
            return chunk
        text, key = (self._text + chunk.text).replace(self._key, HIDDEN), self._key.encode()
        shown = len(text) - beginning(text.encode(), key)
        tokens = merge((*self._tokens, *chunk.tokens), key)
        data = joined(tokens)
        ready = covered(tokens, len(data) - beginning(data, key), len(data)).start
        self._text, self._tokens = text[shown:], tokens[ready:]
        return replace(chunk, text=text[:shown], tokens=tokens[:ready])

    def finish(self) -> ResponseChunk:
        """Return what is held back, replaced if it is long enough to be a secret itself."""
        text, tokens, self._text, self._tokens = self._text, self._tokens, "", ()
        if max(len(text), len(joined(tokens))) >= MIN_SECRET:
            text, tokens = HIDDEN, (HIDDEN_TOKEN,) * bool(tokens)
        return ResponseChunk(text, tokens, None, None)


def joined(tokens: Sequence[ServerToken]) -> bytes:
    """Return the bytes of all tokens."""
    return b"".join(token.bytes for token in tokens)


def merge(tokens: Tokens, key: bytes) -> Tokens:
    """Return ``tokens`` with one token in place of those that spell the key."""
    while (start := joined(tokens).find(key)) >= 0:
        spelling = covered(tokens, start, start + len(key))
        tokens = (*tokens[: spelling.start], HIDDEN_TOKEN, *tokens[spelling.stop :])
    return tokens


def covered(tokens: Tokens, start: int, end: int) -> range:
    """Return the indices of the tokens that have any of the bytes from ``start`` to ``end`` of all."""
    ends = list(accumulate(len(token.bytes) for token in tokens))
    first = next((n for n, after in enumerate(ends) if after > start), len(tokens))
    return range(first, next((n for n, after in enumerate(ends, start=1) if after >= end), len(tokens)))


def beginning(data: bytes, key: bytes) -> int:
    """Return the length of the longest suffix of ``data`` that is a proper prefix of the key."""
    return next((n for n in range(min(len(data), len(key) - 1), 0, -1) if data.endswith(key[:n])), 0)
