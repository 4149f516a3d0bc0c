"""Checks, before a model is loaded, that a file named by an option can be written."""

from __future__ import annotations

import os
from pathlib import Path

from llmcli.errors import LlmcliError, usage_error


def check_writable(option: str, file: Path) -> None:
    """Raise LlmcliError if ``file``, the value of ``option``, cannot be written."""
    folder = Path(os.path.realpath(file)).parent  # a symbolic link is written at its target
    try:
        exists = file.exists()
        if not folder.is_dir():
            raise unwritable(option, file, f"there is no folder {folder}")
        if file.is_dir():
            raise unwritable(option, file, "that is a folder")
        if not os.access(folder, os.W_OK) or (exists and not os.access(file, os.W_OK)):
            raise unwritable(option, file, "it cannot be written")
    except OSError as error:
        raise unwritable(option, file, error.strerror or str(error)) from error


def unwritable(option: str, file: Path, reason: str) -> LlmcliError:
    """Return the error for a file that cannot be written."""
    return usage_error(f"{option} {file}: {reason}", "name another file")
