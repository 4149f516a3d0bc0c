"""Ctrl-C stops a generation between two tokens, and exits at once while libraries load; signals that end a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from llmcli.errors import EXIT_INTERRUPTED


@contextmanager
def exit_on_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process at once: an import may swallow KeyboardInterrupt or print a traceback for it."""
    previous = signal.getsignal(signal.SIGINT)
    if (
        previous is not signal.default_int_handler
    ):  # a handler of the caller, or ignored, as in a shell's background jobs
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def import_torch() -> None:
    """Import torch, which takes a second or two; Ctrl-C exits at once."""
    with exit_on_ctrl_c():
        import torch  # noqa: F401


@dataclass
class Ending:
    """How a run was ended from outside: ``exit_code`` is 128 plus the number of the signal, Ctrl-C's by default."""

    exit_code: int = EXIT_INTERRUPTED


@contextmanager
def end_by_signal() -> Iterator[Ending]:
    """Let SIGTERM and a closed terminal raise KeyboardInterrupt, as Ctrl-C does, so that a run saves its progress.

    A signal that the caller handles or ignores, as nohup does, stays as it is.
    """
    ending = Ending()

    def end(number: int, frame: FrameType | None) -> None:
        ending.exit_code = 128 + number
        raise KeyboardInterrupt

    found = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP
    changed = [number for number in found if signal.getsignal(number) is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, end)
    try:
        yield ending
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


class Interrupt:
    """A context manager that delays KeyboardInterrupt until the next call of ``point``.

    Before the first ``point`` Ctrl-C raises at once, because prefill of a long prompt takes a while. A second Ctrl-C
    always raises at once.
    """

    def __init__(self) -> None:
        self._pressed = False
        self._waits = False
        self._previous: Any = None

    def __enter__(self) -> Interrupt:
        self._previous = signal.getsignal(signal.SIGINT)
        if self._previous is not signal.SIG_IGN:  # as in a shell's background jobs
            signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def point(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed. Call this where nothing is half done."""
        if self._pressed:
            raise KeyboardInterrupt
        self._waits = True

    def rest(self) -> None:
        """Let Ctrl-C raise at once until the next ``point``, while waiting for something that may never come."""
        self.point()
        self._waits = False

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self._pressed or not self._waits:
            raise KeyboardInterrupt
        self._pressed = True
