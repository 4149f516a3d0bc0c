"""How a view proves itself: claims that must hold if its numbers are right, each with its error and its limit.

No torch here: `llmcli tokenize` proves itself too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


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


def relative(error: float, size: float) -> float:
    """An error in units of the ``size`` of what it is an error of; sizes below 1 count as 1.

    Infinite where either is no number: ``max`` of several errors would pass over a NaN.
    """
    return error / max(size, 1.0) if math.isfinite(size) and not math.isnan(error) else math.inf
