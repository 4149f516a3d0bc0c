"""The temperature, fixed or depending on the entropy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llmcli.generation.distribution import Softmax, argmax, tempered
from llmcli.generation.filters.base import NumberFilter, NumberOption, as_index, only

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Temperature(NumberFilter):
    """Divide the logits: below 1 sharpens the distribution, above 1 flattens it. 0 keeps only the argmax.

    With a ``range``, the temperature is dynamic: ``effective`` computes it from the entropy of the logits.
    """

    value: float
    range: float = 0.0
    exponent: float = 1.0
    name: str = "temperature"
    option = NumberOption(
        "Below 1, rare tokens are drawn less often; above 1, more often. 0: always the most probable token.",
        default=0.8,
        off=None,
        aliases=("temp",),
    )
    details: ClassVar[Mapping[str, NumberOption]] = {
        "dynatemp-range": NumberOption(
            "Vary the temperature by up to X: lower where the model is certain. 0: off.",
            default=0.0,
            off=0.0,
        ),
        "dynatemp-exponent": NumberOption(
            "Above 1, the dynamic temperature rises only where the model is very uncertain.",
            default=1.0,
            off=None,
        ),
    }

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        temperature = self.effective(logits) if self.range else self.value
        if temperature > 0:
            return tempered(logits, temperature)
        return only(logits, as_index([argmax(logits)], logits))

    def effective(self, logits: Tensor) -> float:
        """The temperature for these logits, from ``value - range`` (but at least 0) to ``value + range``.

        It is the higher, the nearer the entropy is to that of a uniform choice among the tokens that are not cut.
        """
        count = int(logits.isfinite().sum())
        if self.value == 0 or self.range == 0 or count < 2:
            return self.value
        share = min(max(Softmax(logits).entropy() / math.log2(count), 0.0), 1.0)  # rounding may exceed the limits
        low, high = max(self.value - self.range, 0.0), self.value + self.range
        return low + (high - low) * math.pow(share, self.exponent)

    def settings(self) -> dict[str, float]:
        return super().settings() if self.range else {}

    def state(self, logits: Tensor, ids: Sequence[int] = ()) -> dict[str, float]:
        return {"temperature": self.effective(logits)} if self.range else {}
