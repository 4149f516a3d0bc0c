"""The filters of the sampler: each one changes or cuts logits before a token is drawn.

A filter takes logits [V] in fp32 and the ids of all earlier tokens, and returns new logits. It sets the logits that it
cuts to -inf and leaves at least one token.

A filter with one number as its setting is a ``NumberFilter``. Its class declares everything that its command-line
option needs (name, help, range, default, the value that turns it off), and its place among the ``@register``-ed classes
of this file is its place in the default order. To add a sampler, write such a class here, and test it.

This module does not import torch until a filter runs, so that ``--help`` can list the options quickly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

from llmcli.errors import LlmcliError, usage_error
from llmcli.generation.distribution import argmax, draw, keep, leading, probabilities, ranked, tempered

if TYPE_CHECKING:
    from torch import Tensor

CUT = float("-inf")
MAX_CHANGE = 1e9  # largest bias or penalty: beyond any logit, and safely within the range of fp32


class Filter(Protocol):
    """One stage of the sampler. ``value`` is its setting, or None if that is not a single number."""

    @property
    def name(self) -> str: ...
    @property
    def value(self) -> float | None: ...
    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor: ...


@dataclass(frozen=True)
class NumberOption:
    """What a filter's command-line option needs besides the filter's name.

    ``default`` applies if neither the user nor the model chooses a value. ``off`` is the value that turns the filter
    off, if there is one. Values from ``low`` to ``high`` are valid, except 0 where ``zero`` names the kind of error
    that 0 raises. ``help`` calls the value N if it must be ``whole``, otherwise X.
    """

    help: str
    default: float
    off: float | None
    low: float = 0.0
    high: float = math.inf
    whole: bool = False
    zero: str = ""
    aliases: tuple[str, ...] = ()


class NumberFilter:
    """A filter with one number as its setting, and the command-line option for it."""

    value: float
    name: str
    option: ClassVar[NumberOption]

    def __init__(self, value: float) -> None:  # replaced by that of each dataclass
        raise NotImplementedError

    def __post_init__(self) -> None:
        """Raise LlmcliError if the value is out of range, or a fraction where it must be whole."""
        name, value, option = self.name, self.value, self.option
        if value == 0 and option.zero:
            raise usage_error(f"{name} must not be 0", kind=option.zero)
        if not option.low <= value <= option.high or math.isinf(value):
            limits = f"from {option.low:g} to {option.high:g}"
            if option.high == math.inf:
                limits = f"{'finite and ' if value == math.inf else ''}at least {option.low:g}"
            raise usage_error(f"{name} must be {limits}, not {value:g}")
        if option.whole and value % 1:
            raise usage_error(f"{name} must be a whole number, not {value:g}")

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        """The filtered logits [V]."""
        raise NotImplementedError


FILTERS: dict[str, type[NumberFilter]] = {}  # by option name, in the default order, which is Hugging Face's
F = TypeVar("F", bound=type[NumberFilter])


def register(cls: F) -> F:
    """Add a filter class to ``FILTERS``, after those registered before it."""
    FILTERS[cls.name] = cls
    return cls


@dataclass(frozen=True)
class Vocabulary:
    """Cut the ids that no token has: some models pad their embedding beyond the tokenizer's size, ``value``."""

    value: float
    name: str = "vocabulary"

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        logits = logits.clone()
        logits[int(self.value) :] = CUT
        return logits


@dataclass(frozen=True)
class MinNewTokens:
    """Cut the tokens that end a text while it has fewer than ``value`` tokens, unless no other token is left.

    ``prompt`` and ``ends`` belong to one text: ``after`` sets them, and without them nothing is cut. A context that no
    longer begins with the prompt has dropped its older half, so its text is long enough.
    """

    value: float
    prompt: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    name: str = "min-new-tokens"

    def after(self, prompt: Sequence[int], ends: Iterable[int]) -> MinNewTokens:
        """The same filter for a text that begins after ``prompt`` and ends with one of ``ends``."""
        return replace(self, prompt=tuple(prompt), ends=tuple(ends))

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        start, ends = len(self.prompt), [id for id in self.ends if id < len(logits)]
        if not ends or len(ids) - start >= self.value or tuple(ids[:start]) != self.prompt:
            return logits
        cut = logits.index_fill(0, _index(ends, logits), CUT)
        return cut if bool(cut.max() > CUT) else logits


@dataclass(frozen=True)
class LogitBias:
    """Add ``bias`` to the logits of chosen token ids; -inf bans a token.

    Raises LlmcliError if an amount is too large, or if the bias bans every token that is left.
    """

    bias: Mapping[int, float]
    value: None = None
    name: str = "logit-bias"

    def __post_init__(self) -> None:
        for amount in self.bias.values():
            if amount != CUT and not abs(amount) <= MAX_CHANGE:
                raise usage_error(f"logit-bias must be from {-MAX_CHANGE:g} to {MAX_CHANGE:g}, or -inf, not {amount:g}")

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        biased = logits.index_add(0, _index(self.bias, logits), logits.new_tensor(list(self.bias.values())))
        if not bool(biased.max().isfinite()):
            raise LlmcliError("the logit bias bans every possible token", kind="logit-bias-bans-all")
        return biased


@dataclass(frozen=True)
class Penalty(NumberFilter):
    """Base of the penalties on repetition. They count the last ``window`` tokens, prompt included; None counts all."""

    value: float
    window: int | None = None

    def counts(self, logits: Tensor, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The distinct tokens of the window [n], and how often each occurs in it, fp32 [n]."""
        counted = Counter(ids if self.window is None else ids[max(len(ids) - self.window, 0) :])
        return _index(counted, logits), logits.new_tensor(list(counted.values()))


@register
@dataclass(frozen=True)
class RepetitionPenalty(Penalty):
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


@register
@dataclass(frozen=True)
class PresencePenalty(Penalty):
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


@register
@dataclass(frozen=True)
class FrequencyPenalty(Penalty):
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


@register
@dataclass(frozen=True)
class Temperature(NumberFilter):
    """Divide the logits: below 1 sharpens the distribution, above 1 flattens it. 0 keeps only the argmax."""

    value: float
    name: str = "temperature"
    option = NumberOption(
        "Below 1, rare tokens are drawn less often; above 1, more often. 0: always the most probable token.",
        default=0.8,
        off=None,
        aliases=("temp",),
    )

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        if self.value > 0:
            return tempered(logits, self.value)
        return _only(logits, _index([argmax(logits)], logits))


class Truncation(NumberFilter):
    """Base of the filters that keep the best tokens: they change no logit of a token that they keep."""


@register
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


@register
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


@register
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


@register
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
        return _only(logits, order[kept])


def default_order() -> tuple[str, ...]:
    """The names of all filters in the order in which they run by default."""
    return (LogitBias.name, *FILTERS)


def filter_chain(
    order: Sequence[str],
    values: Mapping[str, float],
    *,
    window: int | None = None,
    bias: Mapping[int, float] | None = None,
) -> list[Filter]:
    """The filters named in ``order``, with ``values`` or their defaults, without those that are off.

    The penalties count the last ``window`` tokens (None: all); "logit-bias" adds ``bias``. Raises LlmcliError if a name
    is unknown or repeated, or a value is out of range, even that of a filter that is not in ``order``.
    """
    known = default_order()
    for name in order:
        if name not in known:
            raise usage_error(f"unknown sampler {name!r}", "known: " + ", ".join(known))
        if order.count(name) > 1:
            raise usage_error(f"sampler {name} is listed twice", "list each sampler at most once")
    built: dict[str, Filter] = {}
    for name, cls in FILTERS.items():
        value = values.get(name, cls.option.default)
        if value != cls.option.off:
            filter = cls(value)
            built[name] = replace(filter, window=window) if isinstance(filter, Penalty) else filter
    if bias:
        built[LogitBias.name] = LogitBias(bias)
    return [built[name] for name in order if name in built]


def _index(ids: Iterable[int], logits: Tensor) -> Tensor:
    """Token ids as a tensor that can index ``logits``."""
    import torch

    return torch.tensor(list(ids), dtype=torch.long, device=logits.device)


def _only(logits: Tensor, ids: Tensor) -> Tensor:
    """The logits of ``ids``, with all others cut."""
    return logits.new_full(logits.shape, CUT).index_copy_(0, ids, logits[ids])
