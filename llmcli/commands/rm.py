"""``llmcli rm``: a model off the disk."""

from __future__ import annotations

import sys

import click

from llmcli.commands.options import common as options
from llmcli.commands.options.model import complete_model
from llmcli.commands.shell.command import Command
from llmcli.errors import usage_error


@click.command(cls=Command)
@click.argument("name", shell_complete=complete_model)
@click.option("--yes", "-y", is_flag=True, help="Do not ask first.")
@options.verbose_option
def rm(name: str, yes: bool, verbose: bool) -> None:
    """Remove the downloaded model NAME from the Hugging Face cache, which other programs use too.

    What other revisions of the model need stays.

    \b
    Examples:
      llmcli rm HuggingFaceTB/SmolLM2-135M
      llmcli rm HuggingFaceTB/SmolLM2-135M --yes
    """
    from llmcli.files.sizes import readable
    from llmcli.hub.remove import removable, remove
    from llmcli.render.terminal import note

    model = removable(name)
    if not yes and (sys.stdin is None or not sys.stdin.isatty()):
        raise usage_error("there is nobody to ask: stdin is no terminal", "--yes removes without asking")
    known_as = "" if name == model.name else f", here {model.name}"
    if not yes and not click.confirm(f"Remove {name}{known_as} ({readable(model.bytes)})?", err=True):
        note("nothing was removed", sys.stderr)
        return
    note(f"removed {name}, {readable(remove(model))} freed", sys.stderr)
