"""``llmcli models``: what is on disk."""

from __future__ import annotations

import sys

import click

from llmcli.commands.options import common as options
from llmcli.commands.shell.command import Command


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a model.")
@options.verbose_option
def models(as_json: bool, verbose: bool) -> None:
    """List the models on disk: those that came with llmcli, and those in the Hugging Face cache.

    Last use is when llmcli last opened or fetched the model. Each name can stand after -m.

    \b
    Examples:
      llmcli models
      llmcli models --json
    """
    from llmcli import hub
    from llmcli.files.ndjson import write_line
    from llmcli.render import json_forms
    from llmcli.render.models import print_models

    found = hub.on_disk()
    if not as_json:
        print_models(found, sys.stdout)
        return
    for model in found:
        write_line(json_forms.model(model), sys.stdout)
