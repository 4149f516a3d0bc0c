"""Reading small JSON files, with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.files.formats import stand_in
from llmcli.files.reading import read_file

MAX_BYTES = 2**25  # config.json is a few KiB, the index of the largest models a few MiB


DAMAGED = "the file may be damaged; download it again"


def read_json(
    path: Path, hint: str = "a model folder has a config.json next to its weights", damaged: str = DAMAGED
) -> dict[str, Any]:
    """Read the JSON object in a file. Raises LlmcliError if it is none, and the errors of ``read_json_value``."""
    return json_object(read_json_value(path, hint, damaged), path, damaged)


def json_object(raw: Any, path: Path, damaged: str) -> dict[str, Any]:
    """Return ``raw``, which was read from a file. Raises LlmcliError, with the hint ``damaged``, if it is no object."""
    if not isinstance(raw, dict):
        raise LlmcliError(f"{path}: not a JSON object", damaged)
    return raw


def read_json_value(path: Path, hint: str, damaged: str = DAMAGED) -> Any:
    """Read the JSON in a file of at most ``MAX_BYTES``.

    Raises LlmcliError if the file is missing (with ``hint``), unreadable, too large, or not JSON (with the hint
    ``damaged``, which must be given for a file that was not downloaded). For invalid JSON the error names the line.
    """

    def fault(problem: str, remedy: str = damaged) -> LlmcliError:
        other = stand_in(path) if damaged == DAMAGED else None
        return other or LlmcliError(f"{path}: {problem}", remedy)

    try:
        return json.loads(read_file(path, MAX_BYTES).decode())
    except FileNotFoundError:
        raise LlmcliError(f"{path}: no such file", hint) from None
    except OSError as error:
        raise LlmcliError(f"{path}: cannot be read: {error.strerror or error}", "check the file") from error
    except UnicodeDecodeError as error:
        raise fault(f"not valid UTF-8 at byte {error.start}", "check the file") from error
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno}: {error.msg})" if isinstance(error, json.JSONDecodeError) else ""
        raise fault(f"not valid JSON{where}") from error
