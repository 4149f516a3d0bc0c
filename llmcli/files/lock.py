"""Locks on open files. The system releases a lock when the file is closed or its process ends, however it ends."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from llmcli.errors import LlmcliError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_LOCKED_BYTE = 2**31 - 1  # a position that few files have, because on Windows no other process can read locked bytes


def lock(file: IO[Any]) -> bool:
    """Lock an open file. Returns False if another process, or another open file, holds its lock.

    Raises OSError if the file system has no locks.
    """
    if sys.platform == "win32":
        position = os.lseek(file.fileno(), 0, os.SEEK_CUR)
        os.lseek(file.fileno(), _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        finally:
            os.lseek(file.fileno(), position, os.SEEK_SET)
    else:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def lock_for_writing(file: IO[Any], path: Path) -> None:
    """Lock the open file of ``path`` if the file system has locks. Raises LlmcliError if another process has it."""
    locked = True
    with suppress(OSError):
        locked = lock(file)
    if not locked:
        raise LlmcliError(f"another process is writing to {path}", "wait until it ends, or name another file")


def open_locked(path: Path) -> BinaryIO:
    """Open an existing file for reading and writing, locked. Raises LlmcliError if another process has locked it."""
    while True:
        file = path.open("r+b")
        lock_for_writing(file, path)
        if is_at(path, file):
            return file
        file.close()  # it has just been replaced


def is_at(path: Path, file: IO[Any]) -> bool:
    """Whether the open file is the one at ``path``, which may have been deleted or replaced since it was opened."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
