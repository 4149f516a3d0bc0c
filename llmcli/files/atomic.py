"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place if the block succeeds: never half a file.

    A link stays one: the file that it leads to is replaced.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.touch()
        permissions = temporary.stat().st_mode
        yield temporary
        temporary.chmod(permissions)  # the user's own: safetensors would let nobody else read its file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
