"""Reading TOML files, with errors that name the file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from llmcli.errors import usage_error
from llmcli.files.reading import read_file

MAX_BYTES = 2**20


def read_toml(path: Path, missing: str, example: str) -> dict[str, Any]:
    """Read the table in a TOML file.

    Raises LlmcliError if the file is missing (with the hint ``missing``), unreadable, not UTF-8, or not TOML (with the
    hint ``example``).
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        return tomllib.loads(read_file(path, MAX_BYTES, pipes=True).decode("utf-8-sig"))
    except FileNotFoundError:
        raise usage_error(f"{path}: no such file", missing) from None
    except OSError as error:
        raise usage_error(f"{path}: {error.strerror or error}", "the file must be readable") from error
    except UnicodeDecodeError as error:
        raise usage_error(f"{path} is not valid UTF-8 at byte {error.start}", "convert it to UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise usage_error(f"{path}: not valid TOML: {error}", example) from None
