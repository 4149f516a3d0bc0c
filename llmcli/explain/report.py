"""How a view proves itself: claims that must hold if its numbers are right, each with its error and its limit.

No torch here: `llmcli tokenize` proves itself too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmcli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Claim:
    """``what`` holds if ``error`` is at most ``limit``."""

    what: str
    error: float
    limit: float

    @property
    def holds(self) -> bool:
        return self.error <= self.limit  # a NaN is not


@dataclass(frozen=True)
class Check:
    """The last line of a view."""

    ok: bool
    claims: tuple[Claim, ...]


def check(*claims: Claim) -> Check:
    """The check that all ``claims`` make together."""
    return Check(all(claim.holds for claim in claims), claims)


def relative_error(error: float, size: float) -> float:
    """An error in units of the ``size`` of what it is an error of; sizes below 1 count as 1.

    Infinite where either is no number: ``max`` of several errors would pass over a NaN.
    """
    return error / max(size, 1.0) if math.isfinite(size) and not math.isnan(error) else math.inf


@dataclass(frozen=True)
class VocabEntry:
    """An entry of the vocabulary; ``text`` is its bytes as UTF-8, U+FFFD for parts of characters."""

    id: int
    text: str
    bytes: bytes


def vocab_entry(tokenizer: Tokenizer, id: int) -> VocabEntry:
    """The entry of an id."""
    return VocabEntry(id, tokenizer.token_text(id), tokenizer.token_bytes(id))


@dataclass(frozen=True)
class Alternative:
    """A token that might have stood there, with the model's own probability of it."""

    id: int | None
    text: str
    bytes: bytes
    prob: float


@dataclass(frozen=True)
class GeneratedToken:
    """One generated token. Probabilities are the model's own, but for ``final_prob``, after the sampler.

    None is what cannot be known: of a model that a server runs, all that the server does not tell.
    """

    index: int
    id: int | None
    text: str
    bytes: bytes
    logprob: float | None  # nats
    prob: float | None
    final_prob: float | None
    rank: int | None  # 0 is the model's favourite
    entropy: float | None  # bits
    u: float | None
    top: tuple[Alternative, ...]  # the most probable tokens, best first


@dataclass(frozen=True)
class RemoteVocabEntry:
    """An entry of a vocabulary whose ids a server does not tell, or not always."""

    id: int | None
    text: str
    bytes: bytes


@dataclass(frozen=True)
class ScoredToken:
    """One token of the text. ``chunk`` is the text that it completes: often its own, sometimes none.

    ``surprisal`` (-log2 p) and ``entropy`` (of all candidates) in bits; ``rank`` 0 is the model's ``favourite``.
    None is what a server does not tell of its model.
    """

    position: int
    piece: VocabEntry | RemoteVocabEntry
    chunk: str
    logprob: float  # nats
    surprisal: float
    rank: int | None
    entropy: float | None
    favourite: VocabEntry | RemoteVocabEntry | None
    p_favourite: float | None


@dataclass(frozen=True)
class ScoreReport:
    """Every token but the ``first``, which nothing comes before. ``bytes`` are those of the tokens scored."""

    model: str
    first: VocabEntry | RemoteVocabEntry
    tokens: tuple[ScoredToken, ...]
    bits: float
    bits_per_token: float
    bits_per_byte: float
    perplexity: float
    bytes: int
    check: Check
