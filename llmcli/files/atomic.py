"""Replacing files and folders as a whole: even if the process is killed, either the old or the new version exists.

The new version is written next to the old one, under a random name that nothing else has, and then renamed. A killed
process leaves it there; the next one that writes the same file or folder deletes it. While it is being written it is
locked, so that no other process takes it for a leftover.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from llmcli.errors import LlmcliError
from llmcli.files.lock import is_at, lock

_STEM = 40  # characters of the name that a temporary name repeats: the whole must have at most 255 bytes
_FILE, _FOLDER = ".part", ".parts"


MORE_SPACE = "free some space, or write to another disk"


def is_disk_full(error: OSError) -> bool:
    """Whether there is no space left on the disk, or in the user's share of it, or for so large a file."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_error(path: Path, error: OSError) -> LlmcliError:
    """Return the error for a file or folder that cannot be written."""
    hint = MORE_SPACE if is_disk_full(error) else "name another file or folder"
    return LlmcliError(f"{path}: cannot be written: {error.strerror or error}", hint)


def append_line(file: BinaryIO, line: bytes, path: Path) -> None:
    """Write a line in one piece to the unbuffered ``file`` at ``path``. Raises LlmcliError unless all of it fits."""
    try:
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise write_error(path, error) from error


@contextmanager
def replacing(path: Path, *, new: bool = False, durable: bool = True, beside: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write, which replaces ``path`` if the block succeeds.

    Through a symbolic link, the link's target is replaced. An older file's permissions are kept. If ``durable``, the
    new file is on the disk before it replaces the old one. The temporary file is in the folder ``beside``, by default
    the target's own. Raises LlmcliError if the file cannot be written or, with ``new``, if it exists by then.
    """
    try:
        target = _resolve(path)
        if target.exists() and not target.is_file():
            raise OSError(errno.EEXIST, "not a regular file")
        with _temporary(beside or target.parent, target.name) as (temporary, file):
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
            with suppress(FileNotFoundError):
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            if sys.platform == "win32":  # no open file is renamed; elsewhere it stays locked
                file.close()
            if new:
                _rename_to_new(temporary, target)
            else:
                temporary.replace(target)
    except OSError as error:
        raise write_error(path, error) from error


def replace_text(path: Path, text: str) -> None:
    """Replace the file with ``text``, in UTF-8. Raises LlmcliError if it cannot be written."""
    with replacing(path) as file:
        file.write(text.encode())


@contextmanager
def replacing_folder(folder: Path, last: str) -> Iterator[Path]:
    """A new folder to fill with files, which becomes ``folder`` if the block succeeds.

    If ``folder`` already has files, or is the root of a disk, the new files are moved into it one by one, and the file
    ``last``, without which the folder is incomplete, at the end. Raises LlmcliError if the folder cannot be written.
    """
    try:
        target = _resolve(folder)
        moves_files = os.path.ismount(target) or (target.is_dir() and any(target.iterdir()))
        beside = target if moves_files else target.parent
        beside.mkdir(parents=True, exist_ok=True)
        with _temporary(beside, target.name) as (temporary, _):
            filled = temporary.with_suffix(_FOLDER)
            try:
                filled.mkdir()
                yield filled
                if moves_files:
                    for file in sorted(filled.iterdir(), key=lambda path: path.name == last):
                        file.replace(target / file.name)
                else:
                    with suppress(FileNotFoundError):
                        target.rmdir()
                    filled.rename(target)
            except LlmcliError as error:  # name the file where it would be, and a model by its folder
                message = error.message.replace(str(filled), str(folder)).replace(filled.name, target.name)
                raise LlmcliError(message, error.hint, kind=error.kind, exit_code=error.exit_code) from error
            finally:
                shutil.rmtree(filled, ignore_errors=True)
    except OSError as error:
        raise write_error(folder, error) from error


def clear_leftovers(path: Path) -> None:
    """Delete what killed processes left when they replaced the file or folder ``path``."""
    with suppress(OSError):
        target = _resolve(path)
        for folder in (target.parent, target):
            _clear(folder, target.name)


def _resolve(path: Path) -> Path:
    """The path that ``path`` refers to through links. Raises OSError if the links are circular."""
    try:
        target = Path(os.path.realpath(path))
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from None
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


@contextmanager
def _temporary(folder: Path, name: str) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file in ``folder`` and its path, locked, for the new version of ``name``; deleted unless it is renamed."""
    _clear(folder, name)
    while True:
        path = folder / f".{name[:_STEM]}.{secrets.token_hex(8)}{_FILE}"
        file = path.open("xb")  # fails if there is a file or a link with this name
        if _locked(file) and is_at(path, file):  # otherwise another process has just cleared it
            break
        file.close()
    try:
        yield path, file
    finally:
        with suppress(OSError):  # what it still buffers may not fit on the disk
            file.close()
        path.unlink(missing_ok=True)


def _locked(file: BinaryIO) -> bool:
    try:
        return lock(file)
    except OSError:  # a file system without locks, where nothing is cleared
        return True


def _clear(folder: Path, name: str) -> None:
    """Delete the temporary files of ``name`` in ``folder`` that no process has locked, and their folders."""
    ours = re.compile(rf"\.{re.escape(name[:_STEM])}\.[0-9a-f]{{16}}{re.escape(_FILE)}")
    with suppress(OSError):  # no such folder, or one that may not be listed
        found = [Path(entry) for entry in os.scandir(folder) if ours.fullmatch(entry.name) and not entry.is_symlink()]
        for path in found:
            with suppress(OSError):
                _clear_one(path)


def _clear_one(path: Path) -> None:
    with path.open("r+b") as file:
        if not lock(file):
            return
        shutil.rmtree(path.with_suffix(_FOLDER), ignore_errors=True)
        with suppress(PermissionError):  # Windows deletes no open file
            path.unlink()
    path.unlink(missing_ok=True)


def _rename_to_new(source: Path, target: Path) -> None:
    """Rename a file. Raises FileExistsError if there is a file with the new name."""
    if sys.platform == "win32":
        source.rename(target)
        return
    try:
        target.hardlink_to(source)  # the caller deletes the old name
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        source.rename(target)
