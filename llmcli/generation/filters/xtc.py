"""XTC, "exclude top choices": a filter that sometimes removes the most probable tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from llmcli.generation.distribution import leading, probabilities
from llmcli.generation.filters.base import CUT, NumberOption
from llmcli.generation.filters.truncation import Truncation

if TYPE_CHECKING:
    from torch import Tensor

MASK = 2**64 - 1


@dataclass(frozen=True)
class Xtc(Truncation):
    """With the given probability, cut all tokens that reach ``threshold`` but the least probable of them. 0 is off.

    Whether it acts is a draw of its own: it acts if ``u`` is below the probability. ``at`` derives that number from the
    step's, so that a step has only one number to keep. Without one (at temperature 0), it does nothing.

    Source: p-e-w, text-generation-webui, pull request 6335 (2024), without its exception for line ends.
    """

    value: float
    threshold: float = 0.1
    u: float | None = None
    name: str = "xtc-probability"
    option = NumberOption(
        "With probability X, remove the most probable tokens, for variety (XTC). 0: off.",
        default=0.0,
        off=0.0,
        high=1.0,
    )
    details: ClassVar[Mapping[str, NumberOption]] = {
        "xtc-threshold": NumberOption(
            "XTC removes tokens with a probability of at least X, except the least probable of them.",
            default=0.1,
            off=None,
            high=1.0,
        )
    }

    def at(self, u: float) -> Xtc:
        """The filter for a step whose token is drawn with ``u``."""
        return replace(self, u=second_number(u))

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        if self.u is None or self.u >= self.value:
            return logits
        count = int(((probabilities(logits) >= self.threshold) & logits.isfinite()).sum())
        if count < 2:
            return logits
        return logits.index_fill(0, leading(logits, count)[:-1], CUT)

    def state(self, logits: Tensor, ids: Sequence[int] = ()) -> dict[str, float]:
        return {} if self.u is None else {"u": self.u}


def second_number(u: float) -> float:
    """Another number of [0, 1), which ``u`` determines but which does not correlate with it (SplitMix64)."""
    bits = (int(u * 2**53) + 0x9E3779B97F4A7C15) & MASK
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & MASK
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & MASK
    return ((bits ^ bits >> 31) >> 11) / 2**53
