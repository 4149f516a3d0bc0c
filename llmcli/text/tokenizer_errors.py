"""Errors of the tokenizers library: bare exceptions, and panics of its Rust code, which also print a backtrace."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from llmcli.errors import LlmcliError

STDERR = 2
SYSTEM_ERROR = re.compile(r"\(os error \d+\)")  # how Rust ends such a message
_hiding = False


def hide_panics() -> None:
    """Discard what a panic prints, for a program that prints errors itself.

    It also discards what other threads print to stderr at that moment, so a library must not do it unasked.
    """
    global _hiding
    _hiding = True


@contextmanager
def tokenizer_errors(problem: str) -> Iterator[None]:
    """Raise an error of the library within the block as an LlmcliError that begins with ``problem``."""
    try:
        with ExitStack() as at_end:
            if _hiding and threading.current_thread() is threading.main_thread():
                _discard_stderr(at_end)
            yield
    except (LlmcliError, MemoryError):
        raise
    except BaseException as error:
        # The library raises bare Exceptions; the class of panics derives from BaseException and is not exported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:300]
        of_system = SYSTEM_ERROR.search(reason)
        hint = "check the file and the system's limits" if of_system else "the file may be damaged; download it again"
        raise LlmcliError(f"{problem}: {reason}", hint) from error


def _discard_stderr(at_end: ExitStack) -> None:
    """Discard what the process writes to stderr until ``at_end``."""
    try:
        saved = os.dup(STDERR)
        at_end.callback(os.close, saved)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, STDERR)
        os.close(nowhere)
        at_end.callback(os.dup2, saved, STDERR)
    except OSError:  # there is no stderr, or too many files are open
        return
