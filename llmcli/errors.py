"""The one exception that a user may see, and the exit codes of the command line."""

from __future__ import annotations

from collections.abc import Iterable

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_READER_GONE = 141  # 128 + SIGPIPE, likewise: what cat and grep end with when `head` has seen enough


class LlmcliError(Exception):
    """Something the user can fix: ``message`` says what is wrong, ``hint`` what to do about it.

    The library states facts and names no option. Where the remedy is an option of the command line, the error has a
    ``kind`` instead, such as "prompt-too-long", for which ``commands.shell.hints`` has the hint. ``exit_code`` is
    EXIT_FAILURE, or EXIT_USAGE if the arguments themselves are wrong.
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
    """An error in the arguments: exit code 2."""
    return LlmcliError(message, hint, kind=kind, exit_code=EXIT_USAGE)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names what is spelt most like ``word``; empty where nothing is."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), n=2)
    return f"did you mean {' or '.join(near)}?" if near else ""


def out_of_memory(error: Exception) -> LlmcliError | None:
    """torch and Python say "no memory" in several ways; one of ours for all of them."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return LlmcliError("out of memory", "use a smaller model, a shorter prompt or --dtype bfloat16")
    return None
