"""The chain of filters: which ones run, and in what order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llmcli.errors import usage_error
from llmcli.generation.filters.base import Filter, NumberFilter, NumberOption, field_of
from llmcli.generation.filters.dry import Breakers, Dry
from llmcli.generation.filters.mirostat import Mirostat
from llmcli.generation.filters.penalties import CountPenalty, FrequencyPenalty, PresencePenalty, RepetitionPenalty
from llmcli.generation.filters.rules import LogitBias
from llmcli.generation.filters.temperature import Temperature
from llmcli.generation.filters.truncation import MinP, TopK, TopNSigma, TopP, Truncation, TypicalP
from llmcli.generation.filters.xtc import Xtc

IN_ORDER: tuple[type[NumberFilter], ...] = (  # Hugging Face's, as far as it has them
    RepetitionPenalty,
    PresencePenalty,
    FrequencyPenalty,
    Dry,
    Temperature,
    TopNSigma,
    TopK,
    TopP,
    MinP,
    TypicalP,
    Xtc,
    Mirostat,
)
FILTERS: dict[str, type[NumberFilter]] = {cls.name: cls for cls in IN_ORDER}
OPTIONS: dict[str, NumberOption] = {}  # of all numbers by name, those of one filter together
for each in IN_ORDER:
    OPTIONS |= {each.name: each.option, **each.details}


def filter_of(name: str) -> type[NumberFilter] | None:
    """The filter that has the number called ``name``, if there is one."""
    return next((cls for cls in FILTERS.values() if name == cls.name or name in cls.details), None)


def default_order() -> tuple[str, ...]:
    """The names of all filters in the order in which they run by default."""
    return (LogitBias.name, *FILTERS)


def filter_chain(
    order: Sequence[str],
    values: Mapping[str, float],
    *,
    window: int | None = None,
    bias: Mapping[int, float] | None = None,
    breakers: Breakers | None = None,
) -> list[Filter]:
    """The filters named in ``order``, with ``values`` or their defaults, without those that are off.

    The penalties count the last ``window`` tokens (None: all); "logit-bias" adds ``bias``; DRY stops at ``breakers``.
    Mirostat replaces the other filters that cut tokens. Raises LlmcliError if a name is unknown or repeated, or a value
    is out of range, even that of a filter that is not in ``order``.
    """
    _check_order(order)
    for name, value in values.items():
        OPTIONS[name].check(name, value)
    built: dict[str, Filter] = {}
    for name, cls in FILTERS.items():
        value = values.get(name, cls.option.default)
        if value == cls.option.off:
            continue
        filter = cls(value, **{field_of(key): values[key] for key in cls.details if key in values})
        if isinstance(filter, CountPenalty):
            filter = replace(filter, window=window)
        built[name] = replace(filter, breakers=breakers) if isinstance(filter, Dry) else filter
    if bias:
        built[LogitBias.name] = LogitBias(bias)
    chain = [built[name] for name in order if name in built]
    if any(isinstance(filter, Mirostat) for filter in chain):
        chain = [filter for filter in chain if isinstance(filter, Mirostat) or not isinstance(filter, Truncation)]
    return chain


def _check_order(order: Sequence[str]) -> None:
    """Raise LlmcliError for a name that is unknown or repeated."""
    known = default_order()
    for name in order:
        if name not in known:
            raise usage_error(f"unknown sampler {name!r}", "known: " + ", ".join(known))
        if order.count(name) > 1:
            raise usage_error(f"sampler {name} is listed twice", "list each sampler at most once")
