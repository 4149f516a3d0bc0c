"""Reading TOML files, with errors that name the file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from llmcli.errors import usage_error
from llmcli.files.reading import read_file

MAX_BYTES = 2**20
MAX_VALUES, MAX_DEPTH = 1000, 20


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
        table = tomllib.loads(read_file(path, MAX_BYTES, pipes=True).decode("utf-8-sig"))
    except FileNotFoundError:
        raise usage_error(f"{path}: no such file", missing) from None
    except OSError as error:
        raise usage_error(f"{path}: {error.strerror or error}", "the file must be readable") from error
    except UnicodeDecodeError as error:
        raise usage_error(f"{path} is not valid UTF-8 at byte {error.start}", "convert it to UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise usage_error(f"{path}: not valid TOML: {error}", example) from None
    check_size(path, table)
    return table


def check_size(path: Path, table: dict[str, Any]) -> None:
    """Raise LlmcliError if there are more values, or deeper ones, than any settings need: messages may list them."""
    level: list[Any] = [table]
    count = depth = 0
    while level:
        level = [value for parent in level for value in (parent.values() if isinstance(parent, dict) else parent)]
        count, depth = count + len(level), depth + 1
        if count > MAX_VALUES or depth > MAX_DEPTH:
            limit = f"more than {MAX_VALUES} values" if count > MAX_VALUES else f"more than {MAX_DEPTH} levels"
            raise usage_error(f"{path}: {limit}", "remove what does not belong there")
        level = [value for value in level if isinstance(value, dict | list)]
