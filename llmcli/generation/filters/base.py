"""What a filter is, and the options of filters whose settings are numbers.

A filter takes logits [V] in fp32 and the ids of all earlier tokens, and returns new logits. It sets the logits that it
cuts to -inf and leaves at least one token.

A filter with a number as its setting is a ``NumberFilter``. Its class declares everything that its command-line options
need: name, help, range, default, the value that turns it off. ``filters.chain`` lists the classes in the default order.

This package does not import torch until a filter runs, so that ``--help`` can list the options quickly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from llmcli.errors import usage_error

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
    """What the command-line option of a number needs besides its name.

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

    def check(self, name: str, value: float) -> None:
        """Raise LlmcliError if the value is out of range, or a fraction where it must be whole."""
        if value == 0 and self.zero:
            raise usage_error(f"{name} must not be 0", kind=self.zero)
        if not self.low <= value <= self.high or math.isinf(value):
            limits = f"from {self.low:g} to {self.high:g}"
            if self.high == math.inf:
                limits = f"{'finite and ' if value == math.inf else ''}at least {self.low:g}"
            raise usage_error(f"{name} must be {limits}, not {value:g}")
        if self.whole and value % 1:
            raise usage_error(f"{name} must be a whole number, not {value:g}")


class NumberFilter:
    """A filter with a number as its setting, and the command-line option for it, which has the filter's name.

    ``details`` are the options of its other numbers by name, such as "xtc-threshold". The field of such a number is
    called like the rest of the name after the first word, here ``threshold``.
    """

    value: float
    name: str
    option: ClassVar[NumberOption]
    details: ClassVar[Mapping[str, NumberOption]] = {}

    def __init__(self, value: float, **details: float) -> None:  # replaced by that of each dataclass
        raise NotImplementedError

    def __post_init__(self) -> None:
        """Raise LlmcliError if a number is out of range, or a fraction where it must be whole."""
        self.option.check(self.name, self.value)
        for name, option in self.details.items():
            option.check(name, getattr(self, field_of(name)))

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        """The filtered logits [V]."""
        raise NotImplementedError

    def settings(self) -> dict[str, float]:
        """The values of ``details`` that have an effect, by option name."""
        return {name: getattr(self, field_of(name)) for name in self.details}

    def state(self, logits: Tensor, ids: Sequence[int] = ()) -> dict[str, float]:
        """What the filter computes from these logits and ids besides its output, by a name for it."""
        return {}


def settings_of(filter: Filter) -> dict[str, float]:
    """The numbers of a filter besides its ``value``, by option name."""
    return filter.settings() if isinstance(filter, NumberFilter) else {}


def field_of(detail: str) -> str:
    """The field of a filter that holds the number called ``detail``."""
    return detail.partition("-")[2].replace("-", "_")


def as_index(ids: Iterable[int], logits: Tensor) -> Tensor:
    """Token ids as a tensor that can index ``logits``."""
    import torch

    return torch.tensor(list(ids), dtype=torch.long, device=logits.device)


def only(logits: Tensor, ids: Tensor) -> Tensor:
    """The logits of ``ids``, with all others cut."""
    return logits.new_full(logits.shape, CUT).index_copy_(0, ids, logits[ids])
