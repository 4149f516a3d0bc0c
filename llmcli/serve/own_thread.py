"""Running a function in a thread that ends, so that its OpenMP threads end, too."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def run_apart(function: Callable[[], T]) -> T:
    """Return what ``function`` returns, in a thread that ends then. Raises what it raises.

    Every thread that computes with torch gets threads of OpenMP's, which end with it. While there are more of them than
    processors, GNU OpenMP's fall asleep after each operation, and waking them takes longer than most operations.
    """
    found: Future[T] = Future()

    def run() -> None:
        try:
            found.set_result(function())
        except BaseException as error:
            found.set_exception(error)

    thread = threading.Thread(target=run, name="apart", daemon=True)  # Ctrl-C does not wait for it
    thread.start()
    result = found.result()
    thread.join()
    return result
