"""Calls in limited time: a regular expression of a tokenizer.json may take hours for a line of text."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout  # before Python 3.11 not the built-in one
from threading import Thread
from typing import TypeVar

from llmcli.errors import LlmcliError
from llmcli.text.tokenizer_errors import tokenizer_errors

SECONDS = 10.0  # for any text
CHARACTERS_PER_SECOND = 20_000  # more time for long texts; most tokenizers encode a million characters per second
T = TypeVar("T")


class LimitedCalls:
    """Calls of the tokenizers library with the tokenizer of the model ``name``.

    The library cannot be interrupted, so it runs in a thread of its own. A call that takes too long is abandoned; its
    thread ends with the program or when the call returns. Only functions for batches let other threads run meanwhile.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._running: Thread | None = None

    def result(self, call: Callable[[], T], what: str, characters: int) -> T:
        """Return the result of ``call``, which does ``what``, such as "encode this text", with so many characters.

        Raises LlmcliError if the library fails, or takes more than ``SECONDS`` and a while for each character.
        """
        seconds = SECONDS + characters / CHARACTERS_PER_SECOND
        if self._running is not None:  # a call that was abandoned or interrupted: the library admits no other
            self._running.join(seconds)
            if self._running.is_alive():
                raise self._too_slow(what, seconds)
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(call())
            except BaseException as error:
                result.set_exception(error)

        self._running = Thread(target=run, daemon=True)
        self._running.start()
        with tokenizer_errors(f"the tokenizer of {self._name} cannot {what}"):
            try:
                returned = result.result(seconds)
            except FutureTimeout:
                raise self._too_slow(what, seconds) from None
        self._running = None
        return returned

    def _too_slow(self, what: str, seconds: float) -> LlmcliError:
        return LlmcliError(
            f"the tokenizer of {self._name} cannot {what} within {seconds:.0f} s",
            "a regular expression in its tokenizer.json may be faulty",
        )
