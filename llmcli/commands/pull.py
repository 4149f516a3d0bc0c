"""``llmcli pull``: a model from the Hugging Face hub onto the disk."""

from __future__ import annotations

import sys

import click

from llmcli.commands.options import common as options
from llmcli.commands.options.model import complete_model
from llmcli.commands.shell.command import Command
from llmcli.errors import usage_error


@click.command(cls=Command)
@click.argument("name", shell_complete=complete_model)
@options.offline_option
@options.verbose_option
def pull(name: str, offline: bool, verbose: bool) -> None:
    """Download the model NAME (org/name or org/name@revision), or bring it up to date.

    Only config, tokenizer and safetensors files are taken, each checked against its checksum. Interrupted, it
    goes on where it stopped. Prints the model's folder. With --offline it only looks whether all is there.
    A token for private and gated models is taken from HF_TOKEN.

    \b
    Examples:
      llmcli pull HuggingFaceTB/SmolLM2-135M
      llmcli pull HuggingFaceTB/SmolLM2-135M@main
    """
    from llmcli import hub
    from llmcli.files.sizes import readable
    from llmcli.hub.cache import size_of
    from llmcli.render.progress import DownloadProgress
    from llmcli.render.terminal import note

    if hub.local_folder(name) is not None and name not in hub.shipped():
        raise usage_error(f"{name} is a folder here, and -m would take that one", "run this in another folder")
    if name not in hub.shipped() and not hub.is_offline(offline):
        with DownloadProgress(name, sys.stderr) as view:
            hub.download(hub.of_the_hub(name), view)
    folder = hub.find(name, offline=True)
    note(f"{name} is complete: {readable(size_of(folder))} in", sys.stderr)
    click.echo(folder)
