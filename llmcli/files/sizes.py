"""Sizes of files, folders and disks in bytes, and how they are shown."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path


def readable(count: int) -> str:
    """``count`` bytes with at most three digits and a decimal unit, as on Hugging Face: 999 B, 1.5 kB, 538 MB."""
    number, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 999.5:
            break
        number, unit = number / 1000, larger
    return f"{number:.0f} {unit}" if unit == "B" or number >= 99.95 else f"{number:.1f} {unit}"


def file_size(path: Path) -> int | None:
    """The size of a file in bytes; None if there is no such file, or if it cannot be examined."""
    with suppress(OSError):
        return path.stat().st_size if path.is_file() else None
    return None


def folder_size(folder: Path) -> int:
    """The total size of the folder's files in bytes. A link counts as the file that it refers to."""
    return sum(file_size(path) or 0 for path in folder.rglob("*"))


def free_space(folder: Path) -> int:
    """The free bytes on the disk that contains ``folder``, which may not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
