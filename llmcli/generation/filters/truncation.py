"""The filters that only cut tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmcli.generation.distribution import draw, keep, leading, probabilities, ranked
from llmcli.generation.filters.base import CUT, NumberFilter, NumberOption, only

if TYPE_CHECKING:
    from torch import Tensor


class Truncation(NumberFilter):
    """Base of the filters that only cut: they keep at least one token, and change no logit of those they keep."""


@dataclass(frozen=True)
class TopNSigma(Truncation):
    """Keep logits at most n standard deviations below the largest one (Tang et al. 2024). 0 is off.

    The standard deviation is that of all logits that are not cut. As all of them scale with the temperature, it does
    not change what is kept.
    """

    value: float
    name: str = "top-n-sigma"
    option = NumberOption(
        "Keep only tokens whose logit is at most X standard deviations below the largest one. 0: off.",
        default=0.0,
        off=0.0,
    )

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        if self.value == 0:
            return logits
        wide = logits.double()
        sigma = wide[wide.isfinite()].std(correction=0)
        return logits.masked_fill(wide < wide.max() - self.value * sigma, CUT)


@dataclass(frozen=True)
class TopK(Truncation):
    """Keep the k largest logits (Fan et al. 2018); of equal logits at the border, those with smaller ids. 0 is off."""

    value: float
    name: str = "top-k"
    option = NumberOption("Keep only the N most probable tokens. 0: off.", default=0.0, off=0.0, whole=True)

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        if not 0 < self.value < len(logits):
            return logits
        return keep(logits, logits, int(leading(logits, int(self.value))[-1]))


@dataclass(frozen=True)
class TopP(Truncation):
    """Keep the fewest most probable tokens that together reach p (nucleus: Holtzman et al. 2020). 1 is off."""

    value: float
    name: str = "top-p"
    option = NumberOption(
        "Keep the fewest tokens whose probabilities add up to X. 1: off.",
        default=0.95,
        off=1.0,
        high=1.0,
        zero="top-p-zero",
    )

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        if self.value == 1:
            return logits
        probs = probabilities(logits)
        # All tokens before the last one have less than p together. So a draw with the u just below p would choose it.
        return keep(logits, probs, draw(probs, math.nextafter(self.value, 0)))


@dataclass(frozen=True)
class MinP(Truncation):
    """Keep tokens at least ``value`` times as probable as the most probable one (Nguyen et al. 2024). 0 is off."""

    value: float
    name: str = "min-p"
    option = NumberOption(
        "Keep tokens at least X times as probable as the most probable one. 0: off.", default=0.0, off=0.0, high=1.0
    )

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        if self.value == 0:
            return logits
        return logits.masked_fill(logits < logits.max() + math.log(self.value), CUT)


@dataclass(frozen=True)
class TypicalP(Truncation):
    """Keep the tokens whose surprisal is nearest to the entropy, as many as reach p (Meister et al. 2023). 1 is off."""

    value: float
    name: str = "typical-p"
    option = NumberOption(
        "Keep the most typical tokens (surprisal nearest to the entropy) that add up to X. 1: off.",
        default=1.0,
        off=1.0,
        high=1.0,
        zero="typical-p-zero",
    )

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        if self.value == 1:
            return logits
        logprobs = logits.log_softmax(dim=-1)
        probs = logprobs.exp()
        mean = -probs.xlogy(probs).sum()
        order = ranked(-(-logprobs - mean).abs())  # nearest first; equal distances by id
        p = probs[order]
        kept = p.cumsum(dim=-1) - p < self.value
        kept[0] = True
        return only(logits, order[kept])
