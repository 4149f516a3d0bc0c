"""Reading whole files of a limited size, even if a path leads to a pipe or an endless device."""

from __future__ import annotations

import stat
from pathlib import Path

from llmcli.errors import LlmcliError
from llmcli.files.sizes import readable


def read_file(path: Path, most: int, *, pipes: bool = False) -> bytes:
    """Return the bytes of a regular file or, if ``pipes``, of anything that can be read.

    Opening a pipe waits for its writer, so nothing else is opened in a model folder. Raises LlmcliError for a file of
    more than ``most`` bytes, or of another kind, and OSError if it cannot be read.
    """
    mode = path.stat().st_mode
    if not (pipes or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder raises the right error
        raise LlmcliError(f"{path}: not a regular file", "replace the pipe or device with a file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise LlmcliError(f"{path}: larger than {readable(most)}", "check that it is the right file")
    return data
