"""Encoding in limited time: a regular expression of a tokenizer.json may take hours for a line of text."""

from __future__ import annotations

from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout  # before Python 3.11 not the built-in one
from threading import Thread
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from llmcli.errors import LlmcliError
from llmcli.text.tokenizer_errors import tokenizer_errors

SECONDS = 10.0  # for any text
CHARACTERS_PER_SECOND = 20_000  # more time for long texts; most tokenizers encode a million characters per second


class LimitedEncoder:
    """Encodes texts with the tokenizer of the model ``name``.

    The library cannot be interrupted, so it runs in a thread of its own. A call that takes too long is abandoned; its
    thread ends with the program or when the call returns.
    """

    def __init__(self, fast: FastTokenizer, name: str) -> None:
        self._fast = fast
        self._name = name
        self._running: Thread | None = None

    def encode(self, text: str, *, parse_special: bool, add_special: bool) -> Any:
        """Return the ``tokenizers.Encoding`` of ``text``; arguments are those of ``Tokenizer.encode``.

        Raises LlmcliError if the library fails, or takes more than ``SECONDS`` and a while for each character.
        """
        seconds = SECONDS + len(text) / CHARACTERS_PER_SECOND
        if self._running is not None:  # a call that was abandoned or interrupted: the library admits no other
            self._running.join(seconds)
            if self._running.is_alive():
                raise self._too_slow(seconds)
        result: Future[Any] = Future()

        def run() -> None:
            try:
                self._fast.encode_special_tokens = not parse_special
                # encode would keep every other thread from running.
                result.set_result(self._fast.encode_batch([text], add_special_tokens=add_special)[0])
            except BaseException as error:
                result.set_exception(error)

        self._running = Thread(target=run, daemon=True)
        self._running.start()
        with tokenizer_errors(f"the tokenizer of {self._name} cannot encode this text"):
            try:
                encoding = result.result(seconds)
            except FutureTimeout:
                raise self._too_slow(seconds) from None
        self._running = None
        return encoding

    def _too_slow(self, seconds: float) -> LlmcliError:
        return LlmcliError(
            f"the tokenizer of {self._name} cannot encode this text within {seconds:.0f} s",
            "a regular expression in its tokenizer.json may be faulty",
        )
