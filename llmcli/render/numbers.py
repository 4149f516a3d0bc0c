"""A model's numbers as text: with the name of the model, and with no more significant digits than hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

DIGITS = {"float32": 6}  # significant decimal digits that hold in what a model computes in a dtype
FEWER_DIGITS = 4  # in any other dtype
_most: ContextVar[int | None] = ContextVar("most", default=None)


@dataclass(frozen=True)
class ModelLabel:
    """How a model is named next to its numbers: with its dtype and quantization. A server's dtype is unknown, None."""

    name: str
    dtype: str | None = None
    quantization: str | None = None

    def __str__(self) -> str:
        return ", ".join(part for part in (self.name, self.dtype, self.quantization) if part)

    @property
    def digits(self) -> int:
        """How many significant digits hold in the numbers that the model computes; no server is better than float32."""
        return DIGITS.get(self.dtype or "float32", FEWER_DIGITS)


def most_digits(models: Sequence[ModelLabel]) -> int | None:
    """Return how many significant digits hold in numbers that all ``models`` computed; None: all, without models."""
    return min((model.digits for model in models), default=None)


@contextmanager
def at_most(digits: int | None) -> Iterator[None]:
    """While the context is active, numbers are shown with at most this many significant digits; None: with all."""
    token = _most.set(digits)
    try:
        yield
    finally:
        _most.reset(token)


def significant(value: float, digits: int | None) -> float:
    """Return ``value`` rounded to ``digits`` significant digits; None keeps all of them."""
    return value if digits is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def full(value: float) -> str:
    """Return ``value`` with all digits that hold."""
    return repr(significant(value, _most.get()))


def fixed(value: float, decimals: int, sign: str = "") -> str:
    """Return ``value`` with so many decimals, or fewer if these are more digits than hold; ``sign`` may be "+"."""
    digits = _most.get()
    value = significant(value, digits)
    if digits is not None and value and math.isfinite(value):
        decimals = max(min(decimals, digits - 1 - math.floor(math.log10(abs(value)))), 0)
    return f"{value:{sign}.{decimals}f}"


def compact(value: float, digits: int) -> str:
    """Return ``value`` with so many significant digits, or fewer if these are more than hold."""
    return f"{value:.{min(digits, _most.get() or digits)}g}"
