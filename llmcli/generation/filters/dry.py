"""DRY, "don't repeat yourself": a penalty on tokens that would continue a repetition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from llmcli.generation.filters.base import MAX_CHANGE, NumberOption, as_index
from llmcli.generation.filters.penalties import Penalty

if TYPE_CHECKING:
    from torch import Tensor

    from llmcli.text.tokenizer import Tokenizer

BREAKERS = ("\n", ":", '"', "*")  # those of llama.cpp


@dataclass(frozen=True)
class Breakers:
    """The texts that a repetition does not reach across, such as line ends, and the tokenizer that finds them."""

    texts: tuple[str, ...]
    tokenizer: Tokenizer = field(repr=False, compare=False)
    _bytes: dict[int, bytes] = field(default_factory=dict, repr=False, compare=False)  # of the tokens seen so far

    def in_token(self, id: int) -> bool:
        """Whether a breaker is part of token ``id``."""
        return self._end_in(self._bytes_of(id)) is not None

    def tokens_after(self, ids: Sequence[int]) -> int:
        """How many of ``ids`` come after the last breaker; all of them if there is none."""
        longest = max((len(text.encode()) for text in self.texts), default=0)
        sizes: list[int] = []  # in bytes, of the tokens from the last one back
        text = b""
        for id in reversed(ids):
            piece = self._bytes_of(id)
            text = (piece + text)[: len(piece) + longest - 1]  # a breaker in the rest would have been found before
            end = self._end_in(text)
            if end is not None:
                return _tokens_after(end - len(piece), sizes)
            sizes.append(len(piece))
        return len(ids)

    def _bytes_of(self, id: int) -> bytes:
        if id not in self._bytes:
            self._bytes[id] = self.tokenizer.token_bytes(id)
        return self._bytes[id]

    def _end_in(self, text: bytes) -> int | None:
        """Where the last breaker in ``text`` ends."""
        ends = [text.rfind(breaker) + len(breaker) for breaker in map(str.encode, self.texts) if breaker in text]
        return max(ends, default=None)


def _tokens_after(end: int, sizes: Sequence[int]) -> int:
    """How many tokens begin at byte ``end`` or later; the last of ``sizes`` is that of the token at byte 0."""
    for count in range(len(sizes), 0, -1):
        if end <= 0:
            return count
        end -= sizes[count - 1]
    return 0


@dataclass(frozen=True)
class Dry(Penalty):
    """Subtract multiplier * base ** (n - allowed_length) from the logits of tokens that continue a repetition.

    Such a token followed the same n tokens before that the text ends with now; n is at least ``allowed_length``, and
    the largest one counts if there are several. The last ``penalty_last_n`` tokens count, prompt included (-1: all).
    No repetition reaches across a breaker, and breakers have no penalty. A multiplier of 0 is off.

    Source: p-e-w, text-generation-webui, pull request 5677 (2024).
    """

    value: float
    base: float = 1.75
    allowed_length: float = 2
    penalty_last_n: float = -1
    breakers: Breakers | None = None
    name: str = "dry-multiplier"
    option = NumberOption(
        "DRY: penalize tokens that continue a repetition, by X for the shortest one. 0: off.",
        default=0.0,
        off=0.0,
        high=MAX_CHANGE,
    )
    details: ClassVar[Mapping[str, NumberOption]] = {
        "dry-base": NumberOption(
            "How many times larger the DRY penalty is for each further token.",
            default=1.75,
            off=None,
            low=1.0,
            high=MAX_CHANGE,
        ),
        "dry-allowed-length": NumberOption(
            "DRY penalizes tokens that continue a repetition of at least N tokens.",
            default=2.0,
            off=None,
            low=1.0,
            whole=True,
        ),
        "dry-penalty-last-n": NumberOption(
            "DRY looks for repetitions in the last N tokens, prompt included. -1: all.",
            default=-1.0,
            off=None,
            low=-1.0,
            whole=True,
        ),
    }

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        lengths = self._lengths(ids)
        exponents = [math.log(self.value) + (n - self.allowed_length) * math.log(self.base) for n in lengths.values()]
        penalties = [math.exp(min(exponent, math.log(MAX_CHANGE))) for exponent in exponents]
        tokens = as_index(lengths, logits)
        return logits.index_copy(0, tokens, logits[tokens] - logits.new_tensor(penalties))

    def state(self, logits: Tensor, ids: Sequence[int] = ()) -> dict[str, float]:
        return {"repeated tokens": max(self._lengths(ids).values(), default=0)}

    def _lengths(self, ids: Sequence[int]) -> dict[int, int]:
        """The tokens to penalize, and the n of each, at most the one from which on the penalty is the largest."""
        if self.value == 0:
            return {}
        start = 0 if self.penalty_last_n < 0 else max(len(ids) - int(self.penalty_last_n), 0)
        text, allowed = ids[start:], int(self.allowed_length)
        most = len(text) if self.breakers is None else self.breakers.tokens_after(text)
        if self.base > 1:
            most = min(most, allowed + math.ceil((math.log(MAX_CHANGE) - math.log(self.value)) / math.log(self.base)))
        if len(text) <= allowed or most < allowed:
            return {}
        found = continuations(text, most)
        broken = set() if self.breakers is None else {id for id in found if self.breakers.in_token(id)}
        return {id: n for id, n in found.items() if n >= allowed and id not in broken}


def continuations(ids: Sequence[int], most: int) -> dict[int, int]:
    """For each token that once followed the last token: how many of the last ``most`` tokens came before it there.

    Takes linear time, by the Z-algorithm on the reversed text.
    """
    text = ids[::-1]
    found: dict[int, int] = {}
    matches = [0] * len(text)  # how many tokens before each position, from there back, equal those at the end
    start = end = 0  # the match that reaches furthest back
    for place in range(1, len(text)):
        n = min(matches[place - start], end - place) if place < end else 0
        while place + n < len(text) and text[n] == text[place + n]:
            n += 1
        matches[place] = n
        if place + n > end:
            start, end = place, place + n
        if n:
            token = text[place - 1]
            found[token] = max(found.get(token, 0), min(n, most))
    return found
