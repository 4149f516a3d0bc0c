"""``llmcli models``: list the models on disk."""

from __future__ import annotations

import sys

import click

from llmcli import hub, render
from llmcli.commands.options.common import verbose_option
from llmcli.commands.shell.command import Command
from llmcli.files.ndjson import write_line
from llmcli.render import json_forms


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per model.")
@verbose_option
def models(as_json: bool) -> None:
    """List the models on disk: shipped with llmcli, in the Hugging Face cache, and of ollama, llama.cpp and LM Studio.

    Use any of the names with -m. The last use is when llmcli last opened or downloaded the model.

    \b
    Examples:
      llmcli models
      llmcli models --json
    """
    found = hub.on_disk()
    if not as_json:
        render.print_models(found, sys.stdout)
        return
    for model in found:
        write_line(json_forms.model(model), sys.stdout)
