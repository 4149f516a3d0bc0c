"""A distribution over the vocabulary: logits to probabilities, tokens ranked by probability, and one token drawn.

Where the compiled engine can take the numbers, it does; elsewhere, such as on a GPU, torch and numpy compute the same.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llmcli.engine.native import distribution as native
from llmcli.errors import LlmcliError

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 2.0**-149  # the smallest probability above 0 in fp32
GROUP_SHIFT = 18  # leaves a float's sign, its exponent and 5 bits of its fraction


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over the whole vocabulary in fp32: softmax after a cut would overstate every probability.

    torch's softmax adds up the numbers one by one, which is off by 3e-5 for a vocabulary of 260,000; ``sum`` is exact
    to 1e-7. Raises LlmcliError if the logits contain NaN or infinity.
    """
    wide = logits.float()
    if native.is_compiled(wide):
        probs, total = native.softmax(wide)
        _require_finite(math.isfinite(total), "logits")
        return probs
    probs = _below_the_largest(wide).exp_()
    probs /= probs.sum(dim=-1, keepdim=True)
    check_finite(probs)
    return probs


def log_probabilities(logits: Tensor) -> Tensor:
    """The natural logarithm of ``probabilities``, [..., V], as exact as they are."""
    shifted = _below_the_largest(logits)
    return shifted - shifted.exp().sum(dim=-1, keepdim=True).log_()


class Softmax:
    """The softmax of logits [V] in fp32, of which only single numbers are needed: faster than all ``probabilities``.

    Raises LlmcliError if the logits contain NaN or infinity.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits.float()
        self._probs = None if native.is_compiled(self.logits) else probabilities(self.logits)
        if self._probs is None:
            _require_finite(math.isfinite(self._sums.total), "logits")

    @cached_property
    def _sums(self) -> native.Sums:
        return native.sums_of(self.logits) if self._probs is None else _sums_of(self.logits)

    def prob(self, id: int) -> float:
        """The probability of token ``id``, with the bits that it has in ``probabilities``."""
        if self._probs is not None:
            return float(self._probs[id])
        return native.probability(self._sums, float(self.logits[id]))

    def logprob(self, id: int) -> float:
        """The natural logarithm of the probability of token ``id``."""
        return float(self.logits[id]) - self._sums.largest - math.log(self._sums.total)

    def entropy(self) -> float:
        """Shannon entropy in bits."""
        return (math.log(self._sums.total) - self._sums.weighted / self._sums.total) / math.log(2)


def _sums_of(logits: Tensor) -> native.Sums:
    wide = logits.double()
    largest = wide.max()
    below = wide - largest
    powers = below.exp()
    weighted = (powers * below.clamp_min(-1000)).sum()  # 0 times -inf would be NaN
    return native.Sums(float(largest), float(powers.sum()), float(weighted))


def _below_the_largest(logits: Tensor) -> Tensor:
    """Logits less the largest one, in fp32: their exponentials cannot overflow."""
    wide = logits.float()
    return wide - wide.amax(dim=-1, keepdim=True)


def check_finite(numbers: Tensor, what: str = "logits") -> None:
    """Raise LlmcliError unless all ``numbers`` that the model computed are finite; ``what`` they are."""
    _require_finite(bool(numbers.sum().isfinite()), what)


def _require_finite(finite: bool, what: str) -> None:
    if not finite:
        raise LlmcliError(f"the model's {what} contain NaN or infinity", kind="logits-not-finite")


def argmax(values: Tensor) -> int:
    """The id of the largest of values [V], of equal ones the smallest id."""
    return int(native.leading(values, 1)[0]) if native.is_compiled(values) else int(values.argmax())


def rank(values: Tensor, id: int) -> int:
    """The place of token ``id`` in the order of ``ranked``, from 0 on."""
    if native.is_compiled(values):
        return native.rank(values, id)
    value = values[id]
    return int((values > value).sum()) + int((values[:id] == value).sum())


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Logits [V] divided by a temperature above 0.

    They are relative to the largest one, which stays 0, and divided in fp64, where no temperature rounds to 0.
    """
    if native.is_compiled(logits):
        return native.tempered(logits, temperature)
    wide = logits.double()
    return ((wide - wide.max()) / temperature).float()


def ranked(values: Tensor, least: float | None = None) -> Tensor:
    """Ids of values [V] in the order (-value, id); with ``least``, only of values that are not below it.

    On a CPU, this packs value and id into one integer each, because numpy sorts integers about fifteen times faster
    than torch sorts floats stably.
    """
    if values.device.type != "cpu":
        order = values.sort(descending=True, stable=True).indices
        return order if least is None else order[: int((values >= least).sum())]
    import numpy as np
    import torch

    floats = values.float().numpy() + np.float32(0)  # turns -0.0 into 0.0
    ids = np.arange(len(floats)) if least is None else np.flatnonzero(floats >= np.float32(least))
    bits = floats[ids].view(np.int32)
    bits ^= (bits >> 31) & 0x7FFFFFFF  # integers in the same order as the floats
    keys = (~bits).astype(np.int64) << 32 | ids
    keys.sort()
    return torch.from_numpy(keys & 0xFFFFFFFF)


def leading(values: Tensor, count: int) -> Tensor:
    """Ids of the ``count`` largest of values [V], in the order of ``ranked``."""
    if count >= len(values):
        return ranked(values)
    if not count:
        return ranked(values)[:0]
    if native.is_compiled(values):
        return native.leading(values, count)
    return ranked(values, float(values.topk(count).values[-1]))[:count]


def intervals(probs: Tensor) -> tuple[Tensor, Tensor]:
    """Ids with p > 0 in the order (-p, id), and the upper end of each one's interval of [0, 1), in fp64.

    The ends are divided by the sum of the probabilities, which rounding keeps from being 1. None is above 1, and the
    last is exactly 1.
    """
    ids = ranked(probs, SMALLEST)
    ends = (probs[ids].double().cumsum(dim=-1) / probs.double().sum()).clamp(max=1.0)
    ends[-1] = 1.0
    return ids, ends


def draw(probs: Tensor, u: float) -> int:
    """The token whose interval contains u: the inverse of the cumulative distribution function. 0 <= u < 1.

    To sort a whole vocabulary takes longer than a step of a small model. So probabilities are grouped by their leading
    bits, whose order is that of the numbers, and only the group that contains u is sorted.
    """
    wide = probs.cpu().float()
    if native.is_compiled(wide):
        return native.draw(wide, u)
    import numpy as np

    values: Any = wide.numpy()
    groups = values.view(np.int32) >> GROUP_SHIFT
    ends = np.bincount(groups, weights=values)[::-1].cumsum()  # of the groups, the most probable first
    total = ends[-1]
    index = int(np.searchsorted(ends, u * total, side="right"))
    index = min(index, int(np.searchsorted(ends, total)))  # rounding may have lifted the product to the total
    members = np.flatnonzero(groups == len(ends) - 1 - index)
    members = members[np.argsort(-values[members], kind="stable")]
    before = ends[index - 1] if index else 0.0
    place = int(np.searchsorted(before + values[members].cumsum(dtype=np.float64), u * total, side="right"))
    return int(members[min(place, int(np.count_nonzero(values[members])) - 1)])


def keep(logits: Tensor, values: Tensor, last: int) -> Tensor:
    """The logits [V] with all cut that come after token ``last`` in the order of ``ranked(values)``."""
    import torch

    if native.is_compiled(logits) and native.is_compiled(values):
        return native.keep(logits, values, last)
    cut = values < values[last]
    cut[last + 1 :] |= values[last + 1 :] == values[last]
    return torch.where(cut, -math.inf, logits)


def pick(probs: Tensor, u: float | None) -> int:
    """The token drawn with u, or the most probable token if u is None."""
    return argmax(probs) if u is None else draw(probs, u)


def kl_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """Kullback-Leibler divergence D(p‖q) of softmax(logits) from softmax(other), both [..., V]: [...], bits, fp64.

    The bits per token that are lost by expecting q when p is right; 0 only where both are the same.
    """
    p, q = logits.double().log_softmax(dim=-1), other.double().log_softmax(dim=-1)
    terms = (p.exp() * (p - q)).masked_fill(p.isneginf(), 0.0)
    return terms.sum(dim=-1).clamp_min(0) / math.log(2)
