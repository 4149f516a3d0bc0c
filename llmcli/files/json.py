"""Small JSON files of a model folder, read with one form of error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmcli.errors import LlmcliError

MOST = 2**25  # bytes; config.json is a few KiB, the index of the largest models a few MiB


def read_json(path: Path, hint: str = "a model folder has config.json beside its weights") -> dict[str, Any]:
    """A JSON object from a file, or an error that names the file and, for broken JSON, the line.

    ``hint`` is for a file that is not there.
    """
    try:
        if path.stat().st_size > MOST:
            raise LlmcliError(f"{path}: larger than {MOST} bytes", "the file may be damaged; get it again")
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LlmcliError(f"{path}: no such file", hint) from None
    except OSError as error:
        raise LlmcliError(f"{path}: cannot be read: {error.strerror or error}", "check the file") from error
    except UnicodeDecodeError as error:
        raise LlmcliError(f"{path}: cannot be read: no UTF-8 at byte {error.start}", "check the file") from error
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno}: {error.msg})" if isinstance(error, json.JSONDecodeError) else ""
        raise LlmcliError(f"{path}: not valid JSON{where}", "the file may be damaged; get it again") from error
    if not isinstance(raw, dict):
        raise LlmcliError(f"{path}: holds no JSON object", "the file may be damaged; get it again")
    return raw
