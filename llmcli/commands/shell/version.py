"""``llmcli --version``: the versions of llmcli, Python and PyTorch, the default device and the native engine."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import click

from llmcli import __version__
from llmcli.commands.shell.interrupt import import_torch
from llmcli.engine import native


def print_version(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    """Print one line and exit; the callback of --version."""
    if not value or ctx.resilient_parsing:
        return
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "not installed"
    device = f", device {default_device(torch)}" if torch != "not installed" else ""
    variant = native.variant()
    engine = f"native engine {variant}" if variant else "no native engine"
    click.echo(f"llmcli {__version__} (Python {platform.python_version()}, torch {torch}{device}, {engine})")
    ctx.exit()


def default_device(torch_version: str) -> str:
    """Return the device that ``--device auto`` picks.

    The version of a CPU-only build of PyTorch ends in "+cpu"; any other build must be imported, which takes a second
    or two.
    """
    if torch_version.endswith("+cpu") and sys.platform != "darwin":
        return "cpu"
    import_torch()
    from llmcli.model.device import pick_device

    return str(pick_device("auto"))
