"""Replacing files atomically."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path next to ``path``, which it replaces if the block succeeds, so that no file is ever half written.

    Through a symbolic link, the link's target is replaced.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.touch()
        permissions = temporary.stat().st_mode
        yield temporary
        # The permissions of the user's umask: safetensors makes files that only their owner can read.
        temporary.chmod(permissions)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
