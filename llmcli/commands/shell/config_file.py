"""The config file: where it lies, and what stands in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from llmcli.files.toml import read_toml

VARIABLE = "LLMCLI_CONFIG"


def config_path() -> Path:
    """The config file, whether it is there or not: that of LLMCLI_CONFIG, or the one in the usual folder."""
    if os.environ.get(VARIABLE):
        return expanded(os.environ[VARIABLE])
    return config_folder() / "config.toml"


def config_folder() -> Path:
    """Where the system keeps a user's settings and histories of llmcli; it may not be there yet."""
    if sys.platform == "win32":
        return Path(click.get_app_dir("llmcli", roaming=True))
    told = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    # By the XDG rules a path that is not absolute does not count.
    return (told if told.is_absolute() else expanded("~/.config")) / "llmcli"


def expanded(path: str) -> Path:
    """A path as somebody typed it, with ~ for a home; as it stands where there is no such user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib's own fails then)


def read_config() -> dict[str, Any]:
    """The file's contents; empty if there is none. Errors: cannot be read, is no TOML."""
    path = config_path()
    if not os.environ.get(VARIABLE) and not path.exists():
        return {}
    return read_toml(path, f"{VARIABLE} names it", "as in: temperature = 0.7")
