"""What the view of a scored text tells, whoever ran the model."""

from __future__ import annotations

from dataclasses import dataclass

from llmcli.explain.check import Check
from llmcli.explain.piece import Piece


@dataclass(frozen=True)
class Unnumbered:
    """An entry of a vocabulary whose ids a server does not tell, or not always."""

    id: int | None
    text: str
    bytes: bytes


@dataclass(frozen=True)
class Scored:
    """One token of the text. ``chunk`` is the text that it completes: often its own, sometimes none.

    ``surprisal`` (-log2 p) and ``entropy`` (of all candidates) in bits; ``rank`` 0 is the model's ``favourite``.
    None is what a server does not tell of its model.
    """

    position: int
    piece: Piece | Unnumbered
    chunk: str
    logprob: float  # nats
    surprisal: float
    rank: int | None
    entropy: float | None
    favourite: Piece | Unnumbered | None
    p_favourite: float | None


@dataclass(frozen=True)
class ScoreReport:
    """Every token but the ``first``, which nothing comes before. ``bytes`` are those of the tokens scored."""

    model: str
    first: Piece | Unnumbered
    tokens: tuple[Scored, ...]
    bits: float
    bits_per_token: float
    bits_per_byte: float
    perplexity: float
    bytes: int
    check: Check
