"""Where a user's own files lie."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click


def config_folder() -> Path:
    """The folder of settings and history, which may not be there yet."""
    if sys.platform == "win32":
        return Path(click.get_app_dir("llmcli"))
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base else Path.home() / ".config") / "llmcli"
