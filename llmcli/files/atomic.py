"""Writing files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path next to ``path`` that replaces it if the block succeeds: never half a file.

    A symbolic link stays one: its target is replaced.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.touch()
        permissions = temporary.stat().st_mode
        yield temporary
        temporary.chmod(permissions)  # as the user's umask says: safetensors creates files that nobody else can read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
