"""Reading TOML files, with uniform errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from llmcli.errors import usage_error


def read_toml(path: Path, missing: str, example: str) -> dict[str, Any]:
    """The table in a TOML file.

    Errors: the file does not exist (its hint is ``missing``), cannot be read, or is not TOML (``example``).
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise usage_error(f"{path}: no such file", missing) from None
    except OSError as error:
        raise usage_error(f"{path}: {error.strerror or error}", "the file must be readable") from error
    except UnicodeDecodeError as error:
        raise usage_error(f"{path} is not valid UTF-8 at byte {error.start}", "convert it to UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise usage_error(f"{path}: not valid TOML: {error}", example) from None
