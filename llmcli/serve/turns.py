"""A lock that is handed on in order, so that models which share a machine take turns."""

from __future__ import annotations

import threading


class Turns:
    """A context manager that one thread is in at a time; the others enter in the order in which they came."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tickets = self._turn = 0

    def __enter__(self) -> None:
        with self._changed:
            ticket = self._tickets
            self._tickets += 1
            while ticket != self._turn:
                self._changed.wait()

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._turn += 1
            self._changed.notify_all()
