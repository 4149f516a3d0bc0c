"""``LlmcliError``, the exception for everything a user can fix, and the exit codes of the command line."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_READER_GONE = 141  # 128 + SIGPIPE: the code of `cat` in `cat file | head`


class LlmcliError(Exception):
    """An error that the user can fix: ``message`` says what is wrong, ``hint`` how to fix it.

    The library does not name options of the command line. If an option fixes the error, the error has a ``kind``
    instead of a hint, such as "prompt-too-long", and ``commands.shell.hints`` has the hint for that kind.
    ``exit_code`` is EXIT_USAGE for wrong arguments and EXIT_FAILURE for everything else.
    """

    def __init__(self, message: str, hint: str = "", *, kind: str = "", exit_code: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.kind = kind
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


def usage_error(message: str, hint: str = "", *, kind: str = "") -> LlmcliError:
    """Return an error for wrong arguments (exit code 2)."""
    return LlmcliError(message, hint, kind=kind, exit_code=EXIT_USAGE)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint with the known words most similar to ``word``, or "" if none is similar."""
    similar = get_close_matches(word, list(known), n=2)
    return f"did you mean {' or '.join(similar)}?" if similar else ""


def out_of_memory(error: Exception) -> LlmcliError | None:
    """Return an LlmcliError if Python or PyTorch raised ``error`` because memory ran out, else None."""
    text = str(error).lower()
    said = ("out of memory", "can't allocate memory", "cannot allocate memory")  # the last one by a mapping of a file
    if isinstance(error, MemoryError) or any(words in text for words in said):
        return LlmcliError("out of memory", kind="out-of-memory")
    return None
