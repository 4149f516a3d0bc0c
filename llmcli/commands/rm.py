"""``llmcli rm``: remove a downloaded model."""

from __future__ import annotations

import sys

import click

from llmcli import render
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.model import complete_model
from llmcli.commands.shell.command import Command
from llmcli.errors import usage_error
from llmcli.files.sizes import readable
from llmcli.hub.remove import removable, remove


@click.command(cls=Command)
@click.argument("name", shell_complete=complete_model)
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
@verbose_option
def rm(name: str, yes: bool) -> None:
    """Remove the downloaded model NAME from the Hugging Face cache, which other programs share.

    Files that other revisions of the model need are kept. Models of ollama, llama.cpp and LM Studio are not removed.

    \b
    Examples:
      llmcli rm HuggingFaceTB/SmolLM2-135M
      llmcli rm bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M
      llmcli rm HuggingFaceTB/SmolLM2-135M --yes
    """
    model = removable(name)
    if not yes and (sys.stdin is None or not sys.stdin.isatty()):
        raise usage_error("cannot ask for confirmation: stdin is not a terminal", "to remove without asking, add --yes")
    known_as = "" if name == model.name else f", which is {model.name}"
    if not yes and not click.confirm(f"Remove {name}{known_as} ({readable(model.bytes)})?", err=True):
        render.note("nothing was removed", sys.stderr)
        return
    render.note(f"removed {name}, {readable(remove(model))} freed", sys.stderr)
