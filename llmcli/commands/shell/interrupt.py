"""Ctrl-C between tokens, never within one: what was counted is what was written. And Ctrl-C while libraries load."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from llmcli.errors import EXIT_INTERRUPTED


@contextmanager
def ending_at_once() -> Iterator[None]:
    """While inside, Ctrl-C ends the process at once: an import could swallow an exception, or show it."""
    former = signal.getsignal(signal.SIGINT)
    if former is not signal.default_int_handler:  # somebody's own; or ignored, as in a shell's background jobs
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def import_torch() -> None:
    """Import torch and what it needs, which takes a second or two."""
    with ending_at_once():
        import torch  # noqa: F401


class Interrupt:
    """A context in which Ctrl-C waits for the next ``point``, and raises KeyboardInterrupt there.

    Before the first point it raises at once (a long prompt may be being read), and so does a second Ctrl-C.
    """

    def __init__(self) -> None:
        self._pressed = False
        self._waits = False
        self._former: Any = None

    def __enter__(self) -> Interrupt:
        self._former = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._former)

    def point(self) -> None:
        """A place where stopping leaves nothing half done."""
        if self._pressed:
            raise KeyboardInterrupt
        self._waits = True

    def rest(self) -> None:
        """From here to the next ``point`` Ctrl-C raises at once: what is waited for may never come."""
        self.point()
        self._waits = False

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self._pressed or not self._waits:
            raise KeyboardInterrupt
        self._pressed = True
