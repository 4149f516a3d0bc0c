"""``llmcli pull``: download a model from the Hugging Face Hub."""

from __future__ import annotations

import sys

import click

from llmcli import hub, render
from llmcli.commands.options.common import offline_option, verbose_option
from llmcli.commands.options.model import complete_model, note_once
from llmcli.commands.shell.command import Command
from llmcli.errors import usage_error
from llmcli.files.sizes import readable


@click.command(cls=Command)
@click.argument("name", shell_complete=complete_model)
@offline_option
@verbose_option
def pull(name: str, offline: bool) -> None:
    """Download the model NAME, or update it, and print its folder or its GGUF file.

    NAME is org/name or org/name@revision; org/name:TAG, such as :Q4_K_M, or org/name/FILE.gguf chooses a GGUF file.
    Only config, tokenizer and safetensors files or that GGUF file are downloaded, and their checksums verified. An
    interrupted download resumes where it stopped. With --offline, only check that the files on disk are complete.
    Private and gated models need a token in HF_TOKEN.

    \b
    Examples:
      llmcli pull HuggingFaceTB/SmolLM2-135M
      llmcli pull HuggingFaceTB/SmolLM2-135M@main
      llmcli pull bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M
    """
    here = None if name in hub.shipped() else hub.local_model(name)
    if here is not None:
        kind = "file" if here.is_file() else "folder"
        raise usage_error(f"{name} is a local {kind}, which -m would open instead", "run this in another folder")
    if name not in hub.shipped() and not hub.is_offline(offline):
        with render.DownloadProgress(name, sys.stderr) as progress:
            hub.download(hub.parse_hub_name(name), progress, note_once)
    folder = hub.find(name, offline=True)
    render.note(f"{name} is complete: {readable(hub.size_of(folder))} in", sys.stderr)
    render.print_path(folder, sys.stdout)
