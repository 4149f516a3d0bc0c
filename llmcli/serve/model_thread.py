"""The threads that compute with models: one that all models share, and one for each model while it loads.

Each thread that computes with torch starts its own pool of OpenMP threads, which ends with it. When there are more
OpenMP threads than processors, GNU OpenMP puts them to sleep after each operation, and waking them takes longer than
most operations.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")


class Worker(Protocol):
    """A model with work to do."""

    @property
    def busy(self) -> bool:
        """Whether there is any work. Called while ``changed`` is locked."""

    def turn(self) -> None:
        """Do a little of it."""


class ModelThread:
    """Lets workers take turns, in order. Whoever gives one of them work notifies ``changed``."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._workers: list[Worker] = []
        self._threads = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)

    def add(self, worker: Worker) -> None:
        """Add a worker. The thread will use as many torch threads as the calling thread does."""
        with self.changed:
            self._workers.append(worker)
            self._threads = torch.get_num_threads()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish all work, and end the thread."""
        with self.changed:
            self._stopping = True
            self.changed.notify()
        self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        while True:
            with self.changed:
                while not (busy := [worker for worker in self._workers if worker.busy]):
                    if self._stopping:
                        return
                    self.changed.wait()
            for worker in busy:
                worker.turn()


def run_apart(function: Callable[[], T]) -> T:
    """Run ``function`` in a new thread that ends afterward, and return its result. Raises what ``function`` raises."""
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
