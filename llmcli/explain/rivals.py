"""What a view tells of one generated token, wherever it was generated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rival:
    """A token that might have stood there, with the model's own probability of it."""

    id: int | None
    text: str
    bytes: bytes
    prob: float


@dataclass(frozen=True)
class TokenReport:
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
    top: tuple[Rival, ...]  # the most probable tokens, best first
