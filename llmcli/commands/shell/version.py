"""``llmcli --version``: llmcli, Python, torch, and the device that a model would run on."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import click

from llmcli import __version__
from llmcli.commands.shell.interrupt import import_torch


def print_version(ctx: click.Context, option: click.Parameter, asked: bool) -> None:
    """The callback of --version: one line, and the end."""
    if not asked or ctx.resilient_parsing:
        return
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "not installed"
    device = f", device {device_with(torch)}" if torch != "not installed" else ""
    click.echo(f"llmcli {__version__} (Python {platform.python_version()}, torch {torch}{device})")
    ctx.exit()


def device_with(torch: str) -> str:
    """What `--device auto` is, with this version of torch.

    A build for the CPU alone says so in its version; for any other only torch can tell, and takes a second or
    two to import.
    """
    if torch.endswith("+cpu") and sys.platform != "darwin":
        return "cpu"
    import_torch()
    from llmcli.model.device import pick_device

    return str(pick_device("auto"))
