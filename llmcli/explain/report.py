"""What every view's report is made of: the report itself, its check, and the entries of a vocabulary that it names.

This module imports no torch: ``llmcli tokenize`` uses it, and so do views of a model that a server runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from llmcli.text.tokenizer import Tokenizer

NOT_IN_JSON = {"json": False}  # metadata of a dataclass field that only the drawn forms of a report show


class Report:
    """Base class of the views' reports, which a notebook shows as the table that the command prints.

    Jupyter calls ``_repr_html_``. Drawing belongs to ``llmcli.render``, a layer above this one, so ``llmcli.load`` sets
    ``Report.to_html`` to ``render.html``, which looks up how to draw a report by its class.
    """

    to_html: ClassVar[Callable[[Report], str] | None] = None

    def _repr_html_(self) -> str | None:
        return None if Report.to_html is None else Report.to_html(self)


@dataclass(frozen=True)
class Claim:
    """A statement that must hold if a view's numbers are right: ``what`` holds if ``error`` is at most ``limit``."""

    what: str
    error: float
    limit: float

    @property
    def holds(self) -> bool:
        return self.error <= self.limit  # False for a NaN


@dataclass(frozen=True)
class Check:
    """A view's verdict on itself, its last line: ``ok`` if all ``claims`` hold."""

    ok: bool
    claims: tuple[Claim, ...]


def check(*claims: Claim) -> Check:
    """Return the check that consists of ``claims``."""
    return Check(all(claim.holds for claim in claims), claims)


def relative_error(error: float, size: float) -> float:
    """Return ``error`` relative to ``size``, the magnitude of the exact value; sizes below 1 count as 1.

    Infinite if either is not a finite number, so that ``max`` over several errors cannot skip a NaN.
    """
    return error / max(size, 1.0) if math.isfinite(size) and not math.isnan(error) else math.inf


@dataclass(frozen=True)
class VocabEntry:
    """A token of the vocabulary; ``text`` is its bytes as UTF-8, with U+FFFD for incomplete characters."""

    id: int
    text: str
    bytes: bytes


@dataclass(frozen=True)
class RemoteVocabEntry:
    """A token of a server's model; ``id`` is None if the server does not send ids."""

    id: int | None
    text: str
    bytes: bytes


def vocab_entry(tokenizer: Tokenizer, id: int) -> VocabEntry:
    """Return the vocabulary entry of token ``id``."""
    return VocabEntry(id, tokenizer.token_text(id), tokenizer.token_bytes(id))


@dataclass(frozen=True)
class Alternative:
    """A token that could have been generated instead; ``prob`` is the model's own probability, before any filter."""

    id: int | None
    text: str
    bytes: bytes
    prob: float


@dataclass(frozen=True)
class GeneratedToken:
    """One generated token. All probabilities are the model's own except ``final_prob``, which is after all filters.

    Fields are None if they are unknown: for a model that a server runs, whatever the server does not send.
    """

    index: int
    id: int | None
    text: str
    bytes: bytes
    logprob: float | None  # nats
    prob: float | None
    final_prob: float | None
    rank: int | None  # 0: the most probable token
    entropy: float | None  # bits
    u: float | None  # the random number that drew it
    top: tuple[Alternative, ...]  # the most probable tokens, in order of probability


@dataclass(frozen=True)
class ScoredToken:
    """One token of a scored text. ``chunk`` is the text that it completes: usually its own, sometimes empty.

    ``surprisal`` (-log2 p) and ``entropy`` (of the whole distribution) are in bits; ``rank`` 0 is the most probable
    token, which is ``favourite``. Fields are None if a server does not send them.
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
class Windows:
    """How a text longer than the context was read: in ``count`` windows of ``size`` tokens.

    Each overlaps the one before by ``overlap`` tokens, from which its first prediction is made.
    """

    count: int
    size: int
    overlap: int


@dataclass(frozen=True)
class ScoreReport(Report):
    """A scored text: all tokens except the ``first``, which has no context. ``bytes`` counts the scored tokens' bytes.

    ``bits`` is the sum of the surprisals; ``perplexity`` is 2 ** ``bits_per_token``. ``windows`` is None if the text
    fits into the context, or if a server read it.
    """

    model: str
    first: VocabEntry | RemoteVocabEntry
    tokens: tuple[ScoredToken, ...]
    bits: float
    bits_per_token: float
    bits_per_byte: float
    perplexity: float
    bytes: int
    windows: Windows | None
    check: Check
