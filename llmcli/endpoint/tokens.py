"""Tokens in a server's response, each with its log probability and the most probable tokens at its position."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from llmcli.endpoint.errors import malformed
from llmcli.explain.report import Alternative, GeneratedToken, RemoteVocabEntry

TOLERANCE = 1e-3  # by which a log probability may exceed 0, or a sum of probabilities 1


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log probability in nats. ``id`` and ``logprob`` are None if the server does not send them."""

    text: str
    bytes: bytes
    id: int | None
    logprob: float | None

    @property
    def prob(self) -> float | None:
        return None if self.logprob is None else math.exp(self.logprob)

    @property
    def vocab_entry(self) -> RemoteVocabEntry:
        return RemoteVocabEntry(self.id, self.text, self.bytes)


@dataclass(frozen=True)
class ServerToken(TokenLogprob):
    """A token that the server generated or scored. ``top``: the most probable tokens at its position, best first."""

    top: tuple[TokenLogprob, ...]

    @property
    def rank(self) -> int | None:
        """Its index in ``top``; None if it is not there, so that only a lower bound of its rank is known."""
        own = (self.bytes, self.id)
        return next((n for n, other in enumerate(self.top) if (other.bytes, other.id) == own), None)

    @property
    def surprisal(self) -> float:
        """-log2 p, in bits. The server must have sent its log probability."""
        assert self.logprob is not None
        return -self.logprob / math.log(2) + 0.0  # no -0.0

    def generated(self, index: int) -> GeneratedToken:
        """Return the token as the views show it, with None for what a server does not send."""
        return GeneratedToken(
            index=index,
            id=self.id,
            text=self.text,
            bytes=self.bytes,
            logprob=self.logprob,
            prob=self.prob,
            final_prob=None,
            rank=self.rank,
            entropy=None,
            u=None,
            top=tuple(Alternative(other.id, other.text, other.bytes, other.prob or 0.0) for other in self.top),
        )


def parse_tokens(logprobs: Any, count: int) -> tuple[ServerToken, ...]:
    """Parse the field "logprobs" of a response, in the form of chats or the older one of completions.

    Keeps the ``count`` most probable tokens of each position: some servers add the generated token to them, whatever
    its rank. Raises LlmcliError if the field has another form.
    """
    if logprobs is None:
        return ()
    if not isinstance(logprobs, Mapping):
        raise malformed("logprobs is not an object")
    if logprobs.get("content") is not None or "tokens" not in logprobs:
        return tuple(_parse_chat_token(entry, count) for entry in _parse_list(logprobs.get("content"), "logprobs"))
    texts = _parse_list(logprobs["tokens"], "tokens")
    numbers = _parse_list(logprobs.get("token_logprobs"), "token_logprobs")
    tops = _parse_list(logprobs.get("top_logprobs"), "top_logprobs")
    if len(numbers) > len(texts) or len(tops) > len(texts):
        raise malformed("more log probabilities than tokens")
    rows = zip_longest(texts, numbers, tops)
    return tuple(_parse_completion_token(text, number, top, count) for text, number, top in rows)


def _parse_chat_token(data: Any, count: int) -> ServerToken:
    own = _parse_logprob_entry(data)
    top = _most_probable(map(_parse_logprob_entry, _parse_list(data.get("top_logprobs"), "top_logprobs")), count)
    return ServerToken(own.text, own.bytes, own.id, own.logprob, top)


def _parse_logprob_entry(data: Any) -> TokenLogprob:
    if not isinstance(data, Mapping):
        raise malformed("a token is not an object")
    text, numbers, id = data.get("token"), data.get("bytes"), data.get("id")
    if not isinstance(text, str):
        raise malformed("a token has no text")
    if isinstance(numbers, list) and all(type(byte) is int and 0 <= byte < 256 for byte in numbers):
        raw = bytes(numbers)
    else:
        raw = _token_bytes(text)
    return TokenLogprob(_token_text(text), raw, id if type(id) is int else None, _parse_logprob(data.get("logprob")))


def _parse_completion_token(text: Any, number: Any, top: Any, count: int) -> ServerToken:
    if not isinstance(text, str) or not isinstance(top, Mapping | None):
        raise malformed("a token is not a string, or its top_logprobs not an object")
    top = {} if top is None or _may_lack_tokens(text, top, count) else top
    entries = (TokenLogprob(_token_text(t), _token_bytes(t), None, _parse_logprob(n)) for t, n in top.items())
    return ServerToken(
        _token_text(text), _token_bytes(text), None, _parse_logprob(number), _most_probable(entries, count)
    )


def _may_lack_tokens(text: str, top: Mapping[str, Any], count: int) -> bool:
    """Whether an object with token texts as keys may lack one of the ``count`` most probable tokens.

    Tokens without text of their own, such as parts of characters, share a key, and the one that remains need not be the
    most probable. The generated token may be an additional entry, which hides the gap.
    """
    blank = any(not name.strip("\ufffd") for name in top)
    others = len(top) - (text == min(top, key=lambda name: _parse_logprob(top[name]) or 0.0, default=None))
    return blank and (others < count or not text.strip("\ufffd"))


def _most_probable(entries: Iterable[TokenLogprob], count: int) -> tuple[TokenLogprob, ...]:
    known = [(-entry.logprob, n, entry) for n, entry in enumerate(entries) if entry.logprob is not None]
    return tuple(entry for _, _, entry in sorted(known)[:count])


def _parse_logprob(number: Any) -> float | None:
    if number is None:
        return None
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    value = float(min(max(number, -1e300), 1e300)) if is_number else math.nan
    if math.isnan(value):
        raise malformed("a log probability is not a number")
    if value > TOLERANCE:
        raise malformed("a log probability is above 0")
    return min(value, 0.0)


def _parse_list(data: Any, name: str) -> Sequence[Any]:
    if data is None:
        return []
    if not isinstance(data, list):
        raise malformed(f"{name} is not a list")
    return data


def _token_bytes(text: str) -> bytes:
    r"""A token's bytes; servers write incomplete characters as "bytes:\xe2\x80"."""
    if re.fullmatch(r"bytes:(\\x[0-9a-fA-F]{2})+", text):
        return bytes.fromhex(text.removeprefix("bytes:").replace("\\x", ""))
    return text.encode("utf-8", "replace")


def _token_text(text: str) -> str:
    return _token_bytes(text).decode("utf-8", "replace")
