"""Results that are computed in parallel, put back into order."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class InOrder(Generic[T]):
    """Reorders the items of texts 0, 1, 2 …, generated in parallel: all items of text 0, then those of text 1."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[T]] = {}
        self._done: set[int] = set()
        self._current = 0

    def put(self, key: int, item: T, *, done: bool) -> list[T]:
        """Add an item of text ``key``, its last one if ``done``. Returns the items whose turn has come."""
        if done:
            self._done.add(key)
        if key != self._current:
            self._waiting.setdefault(key, []).append(item)
            return []
        ready = [item]
        while self._current in self._done:
            self._done.remove(self._current)
            self._current += 1
            ready += self._waiting.pop(self._current, [])
        return ready
