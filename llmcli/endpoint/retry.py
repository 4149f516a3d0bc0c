"""Asking again what failed for the moment: less and less often, and never all at the same time."""

from __future__ import annotations

import random
from collections.abc import Callable
from threading import Event
from typing import TypeVar

from llmcli.endpoint.failures import ServerError

T = TypeVar("T")

TRIES = 8  # about a minute in all, unless the server names longer times
FIRST, LONGEST = 0.5, 30.0  # seconds to wait, twice as long each time
MOST_ASKED = 300.0  # seconds that a server may ask us to wait


def patiently(ask: Callable[[], T], stop: Event) -> T:
    """What ``ask`` returns at last; ``stop`` ends the waiting. Errors: its last one, or one that waiting won't mend."""
    for n in range(TRIES):
        try:
            return ask()
        except ServerError as error:
            if not error.again or n == TRIES - 1 or stop.wait(pause(n, error.wait)):
                raise
    raise AssertionError


def pause(n: int, asked: float | None) -> float:
    """Seconds before try n + 1: what the server asked for, or else longer each time; with chance, which parts a crowd.

    Exponential back-off with jitter (Brooker 2015, "Exponential Backoff And Jitter").
    """
    longest: float = min(FIRST * 2**n, LONGEST)
    return min(asked or 0.0, MOST_ASKED) + longest * random.uniform(0.5, 1.0)
