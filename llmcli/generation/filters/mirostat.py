"""Mirostat 2: a filter that keeps the surprisal of a text near a target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from llmcli.generation.distribution import Softmax, argmax
from llmcli.generation.filters.base import CUT, NumberOption
from llmcli.generation.filters.truncation import Truncation

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Mirostat(Truncation):
    """Cut tokens whose surprisal exceeds ``mu`` bits, but keep at least the most probable one. A tau of 0 is off.

    ``mu`` starts at twice the target, tau. After each token, ``after_token`` moves it against the difference between
    the token's surprisal and the target (Mirostat 2, Basu et al. 2021).
    """

    value: float
    eta: float = 0.1
    mu: float | None = None  # None at the start of a text
    name: str = "mirostat-tau"
    option = NumberOption(
        "Keep the surprisal near X bits per token (Mirostat 2). Replaces the other filters that cut. 0: off.",
        default=0.0,
        off=0.0,
    )
    details: ClassVar[Mapping[str, NumberOption]] = {
        "mirostat-eta": NumberOption(
            "How fast Mirostat's limit follows the surprisal of the text.", default=0.1, off=None
        )
    }

    @property
    def limit(self) -> float:
        """The surprisal in bits beyond which tokens are cut."""
        return 2 * self.value if self.mu is None else self.mu

    def at_start(self) -> Mirostat:
        """The filter for the first token of a text."""
        return replace(self, mu=None)

    def after_token(self, prob: float) -> Mirostat:
        """The filter for the next token, after one whose probability was ``prob`` after all filters."""
        return replace(self, mu=self.limit - self.eta * (-math.log2(prob) - self.value))

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        best = argmax(logits)
        log_total = float(logits[best]) - Softmax(logits).logprob(best)
        least = min(log_total - self.limit * math.log(2), float(logits[best]))
        return logits.masked_fill(logits < least, CUT)

    def state(self, logits: Tensor, ids: Sequence[int] = ()) -> dict[str, float]:
        return {"mu": self.limit}
