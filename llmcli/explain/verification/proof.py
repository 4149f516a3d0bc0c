"""A proof of ``verify``: two ways to the same numbers, how far apart they are, and the verdict."""

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

TINY = torch.finfo(torch.float32).tiny
Verdict = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Divergence:
    """Where two computations first prefer different tokens: after the token at ``position``.

    In the reference ``favourite`` leads ``other`` by ``margin`` logits; rounding can decide a small margin.
    """

    position: int
    favourite: VocabEntry
    other: VocabEntry
    margin: float


@dataclass(frozen=True)
class Finding:
    """The numbers of a proof, which holds if ``error`` is at most ``limit``.

    Of tensors ``error`` is the root mean square of the difference relative to that of the reference. ``largest`` is
    the largest difference of a logit relative to the largest logit. ``largest_kl`` is that of a position, in bits, if
    ``error`` is the mean KL divergence.
    """

    error: float
    limit: float
    divergence: Divergence | None = None
    largest: float | None = None
    largest_kl: float | None = None


class Skipped(Exception):
    """Raised where a proof is impossible here; its message is the reason."""


@dataclass(frozen=True)
class Proof:
    """A finding with its verdict; ``reason`` says why it was skipped, or failed without numbers.

    ``means`` says in a clause what the proof shows; ``parting`` is where the two ways diverge.
    """

    name: str
    means: str
    verdict: Verdict
    error: float | None
    limit: float | None
    largest: float | None
    parting: Divergence | None
    reason: str | None
    largest_kl: float | None = None


@dataclass(frozen=True)
class Plan:
    """A proof to run: ``find`` returns its numbers or raises ``Skipped``."""

    name: str
    means: str
    find: Callable[[], Finding]

    def run(self) -> Proof:
        """Run the proof. A library error, such as logits that are not finite, is a failure."""
        try:
            found = self.find()
        except Skipped as reason:
            return Proof(self.name, self.means, "skipped", None, None, None, None, str(reason))
        except LlmcliError as error:
            return Proof(self.name, self.means, "failed", None, None, None, None, error.message)
        verdict: Verdict = "ok" if found.error <= found.limit else "failed"  # a NaN fails
        return Proof(
            self.name,
            self.means,
            verdict,
            found.error,
            found.limit,
            found.largest,
            found.divergence,
            None,
            found.largest_kl,
        )


def difference(ours: Tensor, reference: Tensor) -> float:
    """Return the root mean square of the difference of two tensors of one shape, relative to that of the reference.

    Not the largest difference: in bfloat16 that is a matter of chance, while the mean over all numbers hardly varies.
    """
    assert ours.shape == reference.shape
    size = float(torch.linalg.vector_norm(reference, dtype=torch.float64))
    return float(torch.linalg.vector_norm(ours - reference, dtype=torch.float64)) / max(size, TINY)


def compare_logits(ours: Tensor, reference: Tensor, limit: float, tokenizer: Tokenizer, first: int = 0) -> Finding:
    """Compare logits [T, V] computed in two ways, after the positions from ``first`` on."""
    return Finding(
        difference(ours, reference),
        limit,
        first_divergence(ours, reference, tokenizer, first),
        largest_difference(ours, reference),
    )


def largest_difference(ours: Tensor, reference: Tensor) -> float:
    """Return the largest difference of two tensors of logits, relative to the largest logit."""
    return float((ours - reference).abs().max()) / max(float(reference.abs().max()), TINY)


def first_divergence(ours: Tensor, reference: Tensor, tokenizer: Tokenizer, first: int = 0) -> Divergence | None:
    """Return where logits [T, V] first have another maximum than the reference; row 0 is position ``first``."""
    favourites, others = reference.argmax(dim=-1), ours.argmax(dim=-1)
    for row in (favourites != others).nonzero()[:1, 0].tolist():
        favourite, other = int(favourites[row]), int(others[row])
        margin = float(reference[row, favourite] - reference[row, other])
        return Divergence(first + row, vocab_entry(tokenizer, favourite), vocab_entry(tokenizer, other), margin)
    return None


def worst(findings: Iterable[Finding]) -> Finding:
    """Return the finding with the largest error; a NaN is the largest."""
    return max(findings, key=lambda found: math.inf if math.isnan(found.error) else found.error)


def fraction_different(ours: Sequence[object], reference: Sequence[object]) -> float:
    """Return in how many places two sequences differ, relative to the length of the longer one."""
    length = max(len(ours), len(reference))
    same = sum(a == b for a, b in zip(ours, reference, strict=False))
    return (length - same) / max(length, 1)
