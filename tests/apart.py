"""Runs a command in a process of its own: killed wherever it changes files, or with little space for them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from llmcli.cli import cli

needs_fork = pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs fork")

CHANGES = {"os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink"}


class Ended(NamedTuple):
    """The exit code of a command, what it wrote to stderr, and how often it changed files."""

    code: int
    stderr: str
    changes: int


def kills(arguments: Sequence[object], folder: Path, *, most: int, stdin: str = "") -> Iterator[None]:
    """Run a command again and again, each time killed before another one of its changes to files below ``folder``.

    Yields after each run, the first of which is not killed, for the caller to look at the files and to restore them.
    If there are more than ``most`` changes, only so many are tried, at equal distances.
    """
    whole = run_apart(arguments, folder, stdin=stdin)
    assert whole.code == 0, whole.stderr
    yield
    for number in range(whole.changes, 0, -max(1, whole.changes // most)):
        assert run_apart(arguments, folder, stdin=stdin, kill_at=number).code == -signal.SIGKILL
        yield


def run_apart(
    arguments: Sequence[object], folder: Path, *, stdin: str = "", kill_at: int = 0, largest: int | None = None
) -> Ended:
    """Run a command in a forked process.

    It is killed before change number ``kill_at`` to files below ``folder``, and no file that it writes can be larger
    than ``largest`` bytes.
    """
    (given, stdin_end), (stderr, stderr_end), (count, count_end) = (os.pipe() for _ in range(3))
    os.write(stdin_end, stdin.encode())
    os.close(stdin_end)
    child = os.fork()
    if child == 0:
        code = 70
        try:
            _redirect(given, stderr_end)
            changes = _Changes(folder, kill_at)
            if largest is not None:
                _limit(largest)
            try:
                cli.main([str(argument) for argument in arguments], prog_name="llmcli")
            except SystemExit as exit:
                code = int(exit.code or 0)
            sys.stderr.flush()
            os.write(count_end, str(changes.count).encode())
        finally:
            os._exit(code)
    for end in (given, stderr_end, count_end):
        os.close(end)
    with open(stderr, encoding="utf-8") as written, open(count) as counted:  # noqa: PTH123
        text, changes_made = written.read(), int(counted.read() or 0)
    return Ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text, changes_made)


def _redirect(stdin: int, stderr: int) -> None:
    """Use these pipes and discard stdout, even where pytest has replaced the streams."""
    for number, file in ((0, stdin), (1, os.open(os.devnull, os.O_WRONLY)), (2, stderr)):
        os.dup2(file, number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _limit(largest: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))


class _Changes:
    """Counts this process's changes to files below a folder, and kills it before one of them."""

    def __init__(self, folder: Path, kill_at: int) -> None:
        self._folder, self._kill_at = str(folder), kill_at
        self.count = 0
        sys.addaudithook(self._audit)
        self._fsync, os.fsync = os.fsync, self._wait

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if (writes or event in CHANGES) and any(self._folder in str(argument) for argument in arguments[:2]):
            self._note()

    def _wait(self, file: int) -> None:
        self._note()
        self._fsync(file)

    def _note(self) -> None:
        self.count += 1
        if self.count == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
