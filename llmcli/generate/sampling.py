"""Logits -> one token: a chain of named filters, then one draw that can be replayed.

A filter takes logits [V] in fp32 and sets those of the tokens it cuts to -inf; at least one is always left.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llmcli.errors import LlmcliError, usage_error

CUT = float("-inf")
FEW = 256  # candidates to order first: nearly always enough


class Filter(Protocol):
    """One stage of the sampler, under the name and value that its option has."""

    @property
    def name(self) -> str: ...
    @property
    def value(self) -> float: ...
    def __call__(self, logits: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Vocabulary:
    """Cuts rows of the embedding that no token has: some models pad theirs beyond the tokenizer's size."""

    value: float
    name: str = "vocabulary"

    def __call__(self, logits: Tensor) -> Tensor:
        unused = torch.arange(len(logits), device=logits.device) >= self.value
        return logits.masked_fill(unused, CUT)


@dataclass(frozen=True)
class Temperature:
    """Divides the logits: below 1 sharpens the distribution, above 1 flattens it. 0 leaves the argmax alone."""

    value: float
    name: str = "temperature"

    def __post_init__(self) -> None:
        _within(self, 0.0, math.inf)

    def __call__(self, logits: Tensor) -> Tensor:
        if self.value > 0:
            # From the maximum, so that the best stays 0, and in fp64, so that no temperature becomes 0.
            return ((logits - logits.max()).double() / self.value).float()
        return _only(logits, logits.argmax().unsqueeze(0))


@dataclass(frozen=True)
class TopK:
    """Keeps the k largest logits (Fan et al. 2018); equal ones at the border by smaller id. 0 is off."""

    value: float
    name: str = "top-k"

    def __post_init__(self) -> None:
        _within(self, 0, math.inf)

    def __call__(self, logits: Tensor) -> Tensor:
        if not 0 < self.value < len(logits):
            return logits
        return _only(logits, leading(logits, int(self.value))[: int(self.value)])


@dataclass(frozen=True)
class TopP:
    """Keeps the fewest most probable tokens that together reach p (nucleus: Holtzman et al. 2020). 1 is off."""

    value: float
    name: str = "top-p"

    def __post_init__(self) -> None:
        _within(self, 0.0, 1.0)
        if self.value == 0:
            raise usage_error("top-p 0 would keep nothing", "for the most probable token alone use --temperature 0")

    def __call__(self, logits: Tensor) -> Tensor:
        if self.value == 1:
            return logits
        probs = logits.softmax(dim=-1)
        for ids in widening(probs):
            p = probs[ids]
            before = p.cumsum(dim=-1) - p  # the mass of all that are more probable
            if before[-1] >= self.value:
                break
        kept = before < self.value
        kept[0] = True
        return _only(logits, ids[kept])


@dataclass(frozen=True)
class MinP:
    """Keeps tokens at least ``value`` times as probable as the most probable (Nguyen et al. 2024). 0 is off."""

    value: float
    name: str = "min-p"

    def __post_init__(self) -> None:
        _within(self, 0.0, 1.0)

    def __call__(self, logits: Tensor) -> Tensor:
        if self.value == 0:
            return logits
        return logits.masked_fill(logits < logits.max() + math.log(self.value), CUT)


# In the order in which they run when nobody says otherwise (that of Hugging Face's generate).
FILTERS: dict[str, type[Temperature | TopK | TopP | MinP]] = {
    "temperature": Temperature,
    "top-k": TopK,
    "top-p": TopP,
    "min-p": MinP,
}
OFF = {"top-k": 0.0, "top-p": 1.0, "min-p": 0.0}
DEFAULTS = {"temperature": 0.8, "top-k": 0.0, "top-p": 0.95, "min-p": 0.0}  # where neither user nor model says


def filter_chain(order: Sequence[str], values: Mapping[str, float]) -> list[Filter]:
    """The filters named in ``order``, with their ``values`` or else ``DEFAULTS``; those turned off are left out.

    Errors: an unknown or repeated name, or a value out of range (also of a filter not in ``order``).
    """
    for name in order:
        if name not in FILTERS:
            raise usage_error(f"there is no sampler {name!r}", "known: " + ", ".join(FILTERS))
        if order.count(name) > 1:
            raise usage_error(f"sampler {name} is named twice", "name each at most once")
    values = {**DEFAULTS, **values}
    built = {name: FILTERS[name](value) for name, value in values.items()}
    return [built[name] for name in order if values[name] != OFF.get(name)]


def _within(filter: Filter, low: float, high: float) -> None:
    if not low <= filter.value <= high or math.isinf(filter.value):
        limits = f"from {low:g} to {high:g}" if high < math.inf else f"a number of at least {low:g}"
        raise usage_error(f"{filter.name} must be {limits}, not {filter.value:g}")


@dataclass(frozen=True)
class Stage:
    """What one filter did: the logits that left it, fp32 [V]."""

    name: str
    value: float
    logits: Tensor


@dataclass(frozen=True)
class Choice:
    """One token and how it came to be chosen. ``u`` is None where nothing was drawn (temperature 0)."""

    id: int
    prob: float  # the model's own, over the whole vocabulary
    final_prob: float  # after the filters
    rank: int  # among the model's own probabilities, 0 the best
    u: float | None


class Sampler:
    """Filters in order, and a seeded source of one number u a step: the same seed, the same draws on any device."""

    def __init__(self, filters: Sequence[Filter], seed: int) -> None:
        self.filters = tuple(filters)
        self.seed = seed
        self._random = random.Random(seed)
        self._coming: deque[float] = deque()  # drawn already, because somebody asked what they will be

    @property
    def greedy(self) -> bool:
        return any(isinstance(filter, Temperature) and filter.value == 0 for filter in self.filters)

    def stages(self, logits: Tensor) -> list[Stage]:
        """Every filter's outcome, in order."""
        stages = []
        for filter in self.filters:
            logits = filter(logits)
            stages.append(Stage(filter.name, filter.value, logits))
        return stages

    def choose(self, logits: Tensor) -> Choice:
        """Filter, draw and describe the choice. Errors: logits that are no numbers."""
        probs = probabilities(logits)
        final = self.final(logits) if self.filters else probs
        u = None
        if not self.greedy:
            u = self._coming.popleft() if self._coming else self._random.random()
        id = pick(final, u)
        prob = probs[id]
        rank = int((probs > prob).sum()) + int((probs[:id] == prob).sum())
        return Choice(id, float(prob), float(final[id]), rank, u)

    def final(self, logits: Tensor) -> Tensor:
        """The probabilities that are drawn from: those of the logits that all filters left."""
        stages = self.stages(logits.float())
        return probabilities(stages[-1].logits if stages else logits)

    def ahead(self, count: int) -> Sequence[float | None]:
        """What ``u`` will be in the next ``count`` choices; they come all the same."""
        if self.greedy:
            return [None] * count
        while len(self._coming) < count:
            self._coming.append(self._random.random())
        return list(self._coming)[:count]


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over the whole vocabulary, in fp32: cutting first would overstate every probability."""
    probs = logits.float().softmax(dim=-1)
    if not bool(torch.isfinite(probs.sum())):
        raise LlmcliError(
            "the model's logits are not numbers",
            "the weights are damaged, or overflow in float16: try --dtype float32",
        )
    return probs


def entropy(probs: Tensor) -> float:
    """Shannon entropy in bits."""
    p = probs.double()
    return float(-torch.special.xlogy(p, p).sum() / math.log(2)) + 0.0


def leading(values: Tensor, count: int) -> Tensor:
    """Ids of at least the ``count`` largest of values [V], ties with the last included, by (-value, id).

    Beside sorting all, this costs next to nothing where few are asked for.
    """
    if count >= len(values):
        return torch.sort(values, descending=True, stable=True).indices
    least = torch.topk(values, count, sorted=True).values[-1]
    ids = (values >= least).nonzero().flatten()
    return ids[torch.sort(values[ids], descending=True, stable=True).indices]


def widening(probs: Tensor) -> Iterator[Tensor]:
    """``leading`` ids for more and more of the tokens that have a chance, up to all of them."""
    alive = int((probs > 0).sum())
    count = FEW
    while count < alive:
        yield leading(probs, count)[:alive]
        count *= 16
    yield leading(probs, alive)[:alive]


def intervals(probs: Tensor) -> tuple[Tensor, Tensor]:
    """Ids with p > 0 by (-p, id), and where each one's share of [0, 1) ends, in fp64.

    The ends are shares of their sum, which rounding keeps from being 1; the last is exactly 1.
    """
    alive = int((probs > 0).sum())
    ids = leading(probs, alive)[:alive]
    ends = _ends(probs, ids)
    ends[-1] = 1.0
    return ids, ends


def draw(probs: Tensor, u: float) -> int:
    """The token in whose interval u lies: the inverse of the cumulative distribution. 0 <= u < 1."""
    probs = probs.cpu()
    for ids in widening(probs):
        ends = _ends(probs, ids)
        if ends[-1] > u:
            break
    place = int(torch.searchsorted(ends, u, right=True))
    return int(ids[min(place, len(ids) - 1)])


def pick(probs: Tensor, u: float | None) -> int:
    """The token drawn by u, or where nothing is drawn (None) the most probable."""
    return int(probs.argmax()) if u is None else draw(probs, u)


def _ends(probs: Tensor, ids: Tensor) -> Tensor:
    """Where the shares of the first ``ids`` end, in units of the whole distribution's sum."""
    return probs[ids].double().cumsum(dim=-1) / probs.double().sum()


def _only(logits: Tensor, ids: Tensor) -> Tensor:
    """The logits of ``ids``, and all others cut."""
    return torch.full_like(logits, CUT).index_copy_(0, ids, logits[ids])
