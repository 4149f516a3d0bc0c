"""Whether a file that an option names can be written, asked before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from llmcli.errors import LlmcliError, usage_error


def check_writable(option: str, file: Path) -> None:
    """Errors: ``file`` of ``option`` cannot be written."""
    folder = Path(os.path.realpath(file)).parent  # of a link: where the file lies that it leads to
    try:
        there = file.exists()
        if not folder.is_dir():
            raise refused(option, file, f"there is no folder {folder}")
        if file.is_dir():
            raise refused(option, file, "that is a folder")
        if not os.access(folder, os.W_OK) or (there and not os.access(file, os.W_OK)):
            raise refused(option, file, "it cannot be written")
    except OSError as error:
        raise refused(option, file, error.strerror or str(error)) from error


def refused(option: str, file: Path, why: str) -> LlmcliError:
    """The error that says so."""
    return usage_error(f"{option} {file}: {why}", "name another file")
