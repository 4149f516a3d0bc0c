"""The JSON object of a request: its options are taken one by one, and what nobody takes is an error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llmcli.errors import did_you_mean
from llmcli.serve.errors import bad_request
from llmcli.text.surrogates import is_unicode

MAX_INTEGER = 2**63 - 1


class Body:
    """The options of a request by name; null counts as absent. ``warnings`` are for options without effect."""

    def __init__(self, data: Any) -> None:
        """Raises ApiError if ``data`` is not an object."""
        if not isinstance(data, Mapping):
            raise bad_request("the body must be a JSON object")
        self._given = {name: value for name, value in data.items() if value is not None}
        self._known: set[str] = set()
        self.warnings: list[str] = []

    def take(self, name: str, default: Any = None) -> Any:
        """Return an option's value as it is, or ``default``."""
        self._known.add(name)
        return self._given.get(name, default)

    def integer(self, name: str, default: int | None, low: int = 0, high: int = MAX_INTEGER) -> int | None:
        """Return a whole number from ``low`` to ``high``. Raises ApiError for anything else."""
        value = self.take(name, default)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            limits = f"of at least {low}" if high == MAX_INTEGER else f"from {low} to {high}"
            raise bad_request(f"{name} must be a whole number {limits}, not {value!r:.80}", name)
        return value

    def number(self, name: str) -> float | None:
        """Return a number. Raises ApiError for anything else."""
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300 or math.isnan(value):
            raise bad_request(f"{name} must be a number", name)
        return float(value)

    def flag(self, name: str) -> bool:
        """Return true or false, which is the default. Raises ApiError for anything else."""
        value = self.take(name, False)
        if not isinstance(value, bool):
            raise bad_request(f"{name} must be true or false", name)
        return value

    def text(self, name: str) -> str | None:
        """Return a text. Raises ApiError for anything else."""
        value = self.take(name)
        if value is not None and (not isinstance(value, str) or not is_unicode(value)):
            raise bad_request(f"{name} must be a string", name)
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of strings as a tuple; one string counts as a list. () if absent. Raises ApiError otherwise."""
        value = self.take(name, [])
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(each, str) and is_unicode(each) for each in values):
            raise bad_request(f"{name} must be a string or a list of strings", name)
        return tuple(values)

    def ids(self, name: str, size: int) -> list[int] | None:
        """Return a list of token ids below ``size``; None without it. Raises ApiError for anything else."""
        value = self.take(name)
        if value is not None and not (
            isinstance(value, list) and all(type(id) is int and 0 <= id < size for id in value)
        ):
            raise bad_request(f"{name} must be a list of ids from 0 to {size - 1}", name)
        return value

    def ignore(self, *names: str, warn: str = "") -> None:
        """Accept options without using them. ``warn`` is the reason to report if ignoring them changes the text."""
        given = [name for name in names if self.take(name) is not None]
        if given and warn:
            self.warn(f"ignored: {', '.join(given)} ({warn})")

    def warn(self, message: str) -> None:
        """Add a warning to the answer."""
        self.warnings.append(message)

    def rest(self) -> dict[str, Any]:
        """Return the options that were not taken."""
        return {name: value for name, value in self._given.items() if name not in self._known}

    def check(self) -> None:
        """Raise ApiError if there are options that were not taken."""
        for name in self.rest():
            hint = did_you_mean(name, self._known)
            raise bad_request(f"unknown option {name[:80]!r}" + (f": {hint}" if hint else ""), name[:80])
