"""The sampler's filters: each takes the logits and the text so far, and lowers, raises or cuts some of them.

A filter takes logits [V] in fp32 and the ids of all tokens before; it sets those that it cuts to -inf, and
leaves at least one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from llmcli.errors import LlmcliError, usage_error
from llmcli.generation.distribution import leading, ranked

CUT = float("-inf")
MOST = 1e9  # that a logit is changed by, or times: beyond any logit, and far from what fp32 cannot hold


class Filter(Protocol):
    """One stage of the sampler, under the name and value that its option has; None where that is no number."""

    @property
    def name(self) -> str: ...
    @property
    def value(self) -> float | None: ...
    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor: ...


@dataclass(frozen=True)
class Vocabulary:
    """Cuts rows of the embedding that no token has: some models pad theirs beyond the tokenizer's size."""

    value: float
    name: str = "vocabulary"

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        unused = torch.arange(len(logits), device=logits.device) >= self.value
        return logits.masked_fill(unused, CUT)


@dataclass(frozen=True)
class LogitBias:
    """Adds a number to the logits of chosen tokens, given by id; -inf bars one.

    Errors: a number too large; nothing would be left.
    """

    bias: Mapping[int, float]
    value: None = None
    name: str = "logit-bias"

    def __post_init__(self) -> None:
        for amount in self.bias.values():
            if amount != CUT and not abs(amount) <= MOST:
                raise usage_error(f"logit-bias must be from {-MOST:g} to {MOST:g}, or -inf, not {amount:g}")

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        tokens = torch.tensor(list(self.bias), device=logits.device)
        added = torch.tensor(list(self.bias.values()), device=logits.device)
        biased = logits.index_add(0, tokens, added)
        if not bool(torch.isfinite(biased.max())):
            raise LlmcliError("the logit bias bars every token that may follow", "bar fewer with --logit-bias")
        return biased


@dataclass(frozen=True)
class Penalty:
    """What the filters against repetition share: ``window`` is how many of the last tokens count, None all."""

    value: float
    window: int | None = None

    def counts(self, logits: Tensor, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The tokens of the window, and how often each stands there, in fp32."""
        counted = Counter(ids if self.window is None else ids[max(len(ids) - self.window, 0) :])
        times = torch.tensor(list(counted.values()), dtype=torch.float32, device=logits.device)
        return torch.tensor(list(counted), dtype=torch.long, device=logits.device), times


@dataclass(frozen=True)
class RepetitionPenalty(Penalty):
    """Divides positive logits of tokens that came before, multiplies negative ones (Keskar et al. 2019). 1 is off."""

    name: str = "repetition-penalty"

    def __post_init__(self) -> None:
        if self.value == 0:
            raise usage_error("repetition-penalty 0 would divide by nothing", "1 is off, more makes repeating rarer")
        _within(self, 1 / MOST, MOST)

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        tokens, _ = self.counts(logits, ids)
        seen = logits[tokens]
        return logits.index_copy(0, tokens, torch.where(seen > 0, seen / self.value, seen * self.value))


@dataclass(frozen=True)
class PresencePenalty(Penalty):
    """Takes this from the logit of every token that came before (as OpenAI's API names it). 0 is off."""

    name: str = "presence-penalty"

    def __post_init__(self) -> None:
        _within(self, -MOST, MOST)

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        tokens, _ = self.counts(logits, ids)
        return logits.index_copy(0, tokens, logits[tokens] - self.value)


@dataclass(frozen=True)
class FrequencyPenalty(Penalty):
    """Takes this from the logit of a token as often as it came before (likewise). 0 is off."""

    name: str = "frequency-penalty"

    def __post_init__(self) -> None:
        _within(self, -MOST, MOST)

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        tokens, times = self.counts(logits, ids)
        return logits.index_copy(0, tokens, logits[tokens] - self.value * times)


@dataclass(frozen=True)
class Temperature:
    """Divides the logits: below 1 sharpens the distribution, above 1 flattens it. 0 leaves the argmax alone."""

    value: float
    name: str = "temperature"

    def __post_init__(self) -> None:
        _within(self, 0.0, math.inf)

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
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

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        if not 0 < self.value < len(logits):
            return logits
        return _only(logits, leading(logits, int(self.value)))


@dataclass(frozen=True)
class TopP:
    """Keeps the fewest most probable tokens that together reach p (nucleus: Holtzman et al. 2020). 1 is off."""

    value: float
    name: str = "top-p"

    def __post_init__(self) -> None:
        _within(self, 0.0, 1.0)
        if self.value == 0:
            raise usage_error("top-p 0 would keep nothing", "for the most probable token alone use --temperature 0")

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        if self.value == 1:
            return logits
        probs = logits.softmax(dim=-1)
        # All that are less probable than this do not make up, together, half of what may be left out.
        tokens = ranked(probs, (1 - self.value) / len(probs) / 2)
        p = probs[tokens]
        before = p.cumsum(dim=-1) - p  # the mass of all that are more probable
        kept = before < self.value
        kept[0] = True
        return _only(logits, tokens[kept])


@dataclass(frozen=True)
class MinP:
    """Keeps tokens at least ``value`` times as probable as the most probable (Nguyen et al. 2024). 0 is off."""

    value: float
    name: str = "min-p"

    def __post_init__(self) -> None:
        _within(self, 0.0, 1.0)

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        if self.value == 0:
            return logits
        return logits.masked_fill(logits < logits.max() + math.log(self.value), CUT)


@dataclass(frozen=True)
class TypicalP:
    """Keeps tokens whose surprisal is nearest to the entropy, as many as reach p (Meister et al. 2023). 1 is off."""

    value: float
    name: str = "typical-p"

    def __post_init__(self) -> None:
        _within(self, 0.0, 1.0)
        if self.value == 0:
            raise usage_error("typical-p 0 would keep nothing", "1 is off")

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        if self.value == 1:
            return logits
        logprobs = logits.log_softmax(dim=-1)
        probs = logprobs.exp()
        mean = -torch.special.xlogy(probs, probs).sum()
        order = ranked(-(-logprobs - mean).abs())  # the nearest first, of equal distances the smaller id
        p = probs[order]
        kept = p.cumsum(dim=-1) - p < self.value  # what comes before has not reached it
        kept[0] = True
        return _only(logits, order[kept])


# Those of one number, in the order in which they run when nobody says otherwise (that of Hugging Face's generate).
FILTERS: dict[str, Callable[[float], Filter]] = {
    "repetition-penalty": RepetitionPenalty,
    "presence-penalty": PresencePenalty,
    "frequency-penalty": FrequencyPenalty,
    "temperature": Temperature,
    "top-k": TopK,
    "top-p": TopP,
    "min-p": MinP,
    "typical-p": TypicalP,
}
ORDER = ("logit-bias", *FILTERS)
OFF = {
    "repetition-penalty": 1.0,
    "presence-penalty": 0.0,
    "frequency-penalty": 0.0,
    "top-k": 0.0,
    "top-p": 1.0,
    "min-p": 0.0,
    "typical-p": 1.0,
}
DEFAULTS = {**OFF, "temperature": 0.8, "top-p": 0.95}  # where neither user nor model says


def filter_chain(
    order: Sequence[str],
    values: Mapping[str, float],
    *,
    window: int | None = None,
    bias: Mapping[int, float] | None = None,
) -> list[Filter]:
    """The filters named in ``order``, with their ``values`` or else ``DEFAULTS``; those turned off are left out.

    ``window`` is how many of the last tokens the penalties count (None: all), ``bias`` is added by "logit-bias".
    Errors: an unknown or repeated name, or a value out of range (also of a filter not in ``order``).
    """
    for name in order:
        if name not in ORDER:
            raise usage_error(f"there is no sampler {name!r}", "known: " + ", ".join(ORDER))
        if order.count(name) > 1:
            raise usage_error(f"sampler {name} is named twice", "name each at most once")
    values = {**DEFAULTS, **values}
    built = {name: FILTERS[name](value) for name, value in values.items() if value != OFF.get(name)}
    built = {name: replace(f, window=window) if isinstance(f, Penalty) else f for name, f in built.items()}
    if bias:
        built["logit-bias"] = LogitBias(bias)
    return [built[name] for name in order if name in built]


def _within(filter: Filter, low: float, high: float) -> None:
    assert filter.value is not None
    if not low <= filter.value <= high or math.isinf(filter.value):
        limits = f"from {low:g} to {high:g}" if high < math.inf else f"a number of at least {low:g}"
        raise usage_error(f"{filter.name} must be {limits}, not {filter.value:g}")


def _only(logits: Tensor, ids: Tensor) -> Tensor:
    """The logits of ``ids``, and all others cut."""
    return torch.full_like(logits, CUT).index_copy_(0, ids, logits[ids])
