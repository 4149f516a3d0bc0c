"""A proof of ``verify``: two ways to the same numbers, how far they lie apart, and what that says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.explain.report import VocabEntry, vocab_entry
from llmcli.text.tokenizer import Tokenizer

SMALLEST = torch.finfo(torch.float32).tiny
Verdict = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Parting:
    """Where two ways first have different favourites behind the token at ``position``.

    There ``favourite`` leads ``other`` by ``margin`` logits, by the way that is the reference: next to nothing is a
    tie, which rounding decides.
    """

    position: int
    favourite: VocabEntry
    other: VocabEntry
    margin: float


@dataclass(frozen=True)
class Finding:
    """``error`` is right up to ``limit``: of numbers, the difference as a share of them, both as root mean squares.

    ``largest`` is, of logits, the largest difference as a share of the largest logit.
    """

    error: float
    limit: float
    parting: Parting | None = None
    largest: float | None = None


class Skipped(Exception):
    """Why a proof cannot be made here."""


@dataclass(frozen=True)
class Proof:
    """A finding with its verdict; ``reason`` says why it was skipped, or failed without numbers."""

    name: str
    means: str
    verdict: Verdict
    error: float | None
    limit: float | None
    largest: float | None
    parting: Parting | None
    reason: str | None


@dataclass(frozen=True)
class Plan:
    """A proof still to be made: ``find`` makes it, or raises ``Skipped``; ``means`` says in a clause what it shows."""

    name: str
    means: str
    find: Callable[[], Finding]

    def prove(self) -> Proof:
        try:
            found = self.find()
        except Skipped as reason:
            return Proof(self.name, self.means, "skipped", None, None, None, None, str(reason))
        except LlmcliError as error:  # such as logits that are no numbers
            return Proof(self.name, self.means, "failed", None, None, None, None, error.message)
        verdict: Verdict = "ok" if found.error <= found.limit else "failed"  # a NaN fails
        return Proof(self.name, self.means, verdict, found.error, found.limit, found.largest, found.parting, None)


def difference(ours: Tensor, reference: Tensor) -> float:
    """How far two tensors of one shape lie apart, as a share of the reference: root mean squares over all numbers.

    Not of the largest alone: that of bfloat16 is a matter of chance, while all of them together hardly vary.
    """
    assert ours.shape == reference.shape
    size = float(torch.linalg.vector_norm(reference, dtype=torch.float64))
    return float(torch.linalg.vector_norm(ours - reference, dtype=torch.float64)) / max(size, SMALLEST)


def compared(ours: Tensor, reference: Tensor, limit: float, tokenizer: Tokenizer, first: int = 0) -> Finding:
    """What becomes of logits [T, V], behind the positions from ``first`` on, by two ways."""
    return Finding(
        difference(ours, reference), limit, parting(ours, reference, tokenizer, first), largest(ours, reference)
    )


def largest(ours: Tensor, reference: Tensor) -> float:
    """The largest difference of two ways' logits, as a share of the largest logit."""
    return float((ours - reference).abs().max()) / max(float(reference.abs().max()), SMALLEST)


def parting(ours: Tensor, reference: Tensor, tokenizer: Tokenizer, first: int = 0) -> Parting | None:
    """The first row of logits [T, V] with another favourite, if there is one."""
    favourites, others = reference.argmax(dim=-1), ours.argmax(dim=-1)
    for row in (favourites != others).nonzero()[:1, 0].tolist():
        favourite, other = int(favourites[row]), int(others[row])
        margin = float(reference[row, favourite] - reference[row, other])
        return Parting(first + row, vocab_entry(tokenizer, favourite), vocab_entry(tokenizer, other), margin)
    return None


def worst(findings: Iterable[Finding]) -> Finding:
    """The one furthest off."""
    return max(findings, key=lambda found: math.inf if math.isnan(found.error) else found.error)


def share_of_differing(ours: Sequence[object], reference: Sequence[object]) -> float:
    """How many places of two sequences differ, as a share of the longer's length."""
    length = max(len(ours), len(reference))
    same = sum(a == b for a, b in zip(ours, reference, strict=False))
    return (length - same) / max(length, 1)
