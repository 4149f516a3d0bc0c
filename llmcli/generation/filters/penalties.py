"""The penalties: they lower the logits of tokens for what the text already contains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmcli.generation.filters.base import MAX_CHANGE, NumberFilter, NumberOption, as_index

if TYPE_CHECKING:
    from torch import Tensor


class Penalty(NumberFilter):
    """Base of the filters that change the logits of single tokens for what the text already contains."""


@dataclass(frozen=True)
class CountPenalty(Penalty):
    """Base of the penalties on tokens that occurred in the last ``window`` tokens, prompt included (None: in all)."""

    value: float
    window: int | None = None

    def counts(self, logits: Tensor, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The distinct tokens of the window [n], and how often each occurs in it, fp32 [n]."""
        counted = Counter(ids if self.window is None else ids[max(len(ids) - self.window, 0) :])
        return as_index(counted, logits), logits.new_tensor(list(counted.values()))


@dataclass(frozen=True)
class RepetitionPenalty(CountPenalty):
    """Divide the positive logits of earlier tokens and multiply the negative ones (Keskar et al. 2019). 1 is off."""

    name: str = "repetition-penalty"
    option = NumberOption(
        "Above 1, tokens that occurred before become less likely. 1: off.",
        default=1.0,
        off=1.0,
        low=1 / MAX_CHANGE,
        high=MAX_CHANGE,
        zero="repetition-penalty-zero",
        aliases=("repeat-penalty",),
    )

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        tokens, _ = self.counts(logits, ids)
        seen = logits[tokens]
        return logits.index_copy(0, tokens, (seen / self.value).where(seen > 0, seen * self.value))


@dataclass(frozen=True)
class PresencePenalty(CountPenalty):
    """Subtract the value from the logit of every earlier token (as in OpenAI's API). 0 is off."""

    name: str = "presence-penalty"
    option = NumberOption(
        "Subtract X from the logit of each token that occurred before. 0: off.",
        default=0.0,
        off=0.0,
        low=-MAX_CHANGE,
        high=MAX_CHANGE,
    )

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        tokens, _ = self.counts(logits, ids)
        return logits.index_copy(0, tokens, logits[tokens] - self.value)


@dataclass(frozen=True)
class FrequencyPenalty(CountPenalty):
    """Subtract the value from the logit of a token once per earlier occurrence (as in OpenAI's API). 0 is off."""

    name: str = "frequency-penalty"
    option = NumberOption(
        "Subtract X once for each time that the token occurred. 0: off.",
        default=0.0,
        off=0.0,
        low=-MAX_CHANGE,
        high=MAX_CHANGE,
    )

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        tokens, times = self.counts(logits, ids)
        return logits.index_copy(0, tokens, logits[tokens] - self.value * times)
