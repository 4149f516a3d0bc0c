"""Tokens as a server tells them, each with its log probability and those of its rivals."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from llmcli.endpoint.failures import malformed

ROUNDING = 1e-3  # by which a log probability may be above 0


@dataclass(frozen=True)
class Rated:
    """A token and its log probability in nats, None where the server does not tell; so too its ``id``."""

    text: str
    bytes: bytes
    id: int | None
    logprob: float | None

    @property
    def prob(self) -> float | None:
        return None if self.logprob is None else math.exp(self.logprob)


@dataclass(frozen=True)
class Token(Rated):
    """A token of the answer. ``top`` are the most probable ones in its place, best first."""

    top: tuple[Rated, ...]

    @property
    def rank(self) -> int | None:
        """Its place among ``top``; None if it is not there: then only that it comes later is known."""
        own = (self.bytes, self.id)
        return next((n for n, rival in enumerate(self.top) if (rival.bytes, rival.id) == own), None)


def read_tokens(said: Any, most: int) -> tuple[Token, ...]:
    """The field "logprobs" of an answer, in the form of chats or in the older one of completions.

    Of each place the ``most`` probable tokens are kept: some servers add the one that was written, whatever its rank.

    Errors: it has another form.
    """
    if said is None:
        return ()
    if not isinstance(said, Mapping):
        raise malformed("logprobs are no object")
    if said.get("content") is not None or "tokens" not in said:
        return tuple(_token(entry, most) for entry in _list(said.get("content"), "logprobs"))
    texts, numbers = _list(said["tokens"], "tokens"), _list(said.get("token_logprobs"), "token_logprobs")
    tops = _list(said.get("top_logprobs"), "top_logprobs")
    if len(numbers) > len(texts) or len(tops) > len(texts):
        raise malformed("more log probabilities than tokens")
    rows = zip_longest(texts, numbers, tops)
    return tuple(_older(text, number, top, most) for text, number, top in rows)


def _token(said: Any, most: int) -> Token:
    own = _rated(said)
    rivals = _best(map(_rated, _list(said.get("top_logprobs"), "top_logprobs")), most)
    return Token(own.text, own.bytes, own.id, own.logprob, rivals)


def _rated(said: Any) -> Rated:
    if not isinstance(said, Mapping):
        raise malformed("a token is no object")
    text, data, id = said.get("token"), said.get("bytes"), said.get("id")
    if not isinstance(text, str):
        raise malformed("a token has no text")
    if isinstance(data, list) and all(type(byte) is int and 0 <= byte < 256 for byte in data):
        raw = bytes(data)
    else:
        raw = _bytes(text)
    return Rated(_text(text), raw, id if type(id) is int else None, _logprob(said.get("logprob")))


def _older(text: Any, number: Any, top: Any, most: int) -> Token:
    if not isinstance(text, str) or not isinstance(top, Mapping | None):
        raise malformed("a token is no text, or its rivals no object")
    top = {} if top is None or _lossy(text, top, most) else top
    rivals = _best((Rated(_text(t), _bytes(t), None, _logprob(n)) for t, n in top.items()), most)
    return Token(_text(text), _bytes(text), None, _logprob(number), rivals)


def _lossy(text: str, top: Mapping[str, Any], most: int) -> bool:
    """Whether a list by text may lack one of the ``most`` probable tokens.

    Of several that have no text, such as parts of characters, one is left, and not the best; and the token that was
    written may be an extra one, which hides the gap.
    """
    blank = any(not name.strip("\ufffd") for name in top)
    others = len(top) - (text == min(top, key=lambda name: _logprob(top[name]) or 0.0, default=None))
    return blank and (others < most or not text.strip("\ufffd"))


def _best(rivals: Iterable[Rated], most: int) -> tuple[Rated, ...]:
    known = [(-rival.logprob, n, rival) for n, rival in enumerate(rivals) if rival.logprob is not None]
    return tuple(rival for _, _, rival in sorted(known)[:most])


def _logprob(number: Any) -> float | None:
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise malformed("a log probability is no number")
    value = float(min(max(number, -1e300), 1e300))
    if math.isnan(value) or value > ROUNDING:
        raise malformed("a log probability is above 0")
    return min(value, 0.0)


def _list(found: Any, what: str) -> Sequence[Any]:
    if found is None:
        return []
    if not isinstance(found, list):
        raise malformed(f"{what} is no list")
    return found


def _bytes(text: str) -> bytes:
    r"""A token's bytes; parts of characters stand as "bytes:\xe2\x80"."""
    if re.fullmatch(r"bytes:(\\x[0-9a-fA-F]{2})+", text):
        return bytes.fromhex(text.removeprefix("bytes:").replace("\\x", ""))
    return text.encode("utf-8", "replace")


def _text(text: str) -> str:
    return _bytes(text).decode("utf-8", "replace")
