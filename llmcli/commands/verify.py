"""``llmcli verify``: is this model run right here?"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from llmcli import explain, render
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.model import ModelChoice, model_options
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.options.prompt import Prompt, prompt_options
from llmcli.commands.shell.command import Command

if TYPE_CHECKING:
    from llmcli.generation.loaded import LoadedModel


@click.command(cls=Command)
@prompt_options()
@output_options
@model_options
@verbose_option
def verify(prompt: Prompt, output: OutputOptions, choice: ModelChoice, verbose: bool) -> None:
    """Is this model run right here? Prove it on your own checkpoint, device and dtype: each row is a proof.

    The model reads a text in every way that it can be read, which must give the same logits, and is watched while
    it does. It is compared with itself on other devices and in other dtypes and, where transformers is installed,
    with what that makes of the same folder, layer by layer. What cannot be proved here is skipped and says why.
    Without PROMPT a text of llmcli's own is read. If a proof fails the exit code is 1.

    \b
    Examples:
      llmcli verify
      llmcli verify "Once upon a time there was a fox" --dtype float32
      llmcli verify --quantize int8 --json
    """
    text = prompt.read_optional()
    loaded = choice.open()
    with render.VerifyProgress(sys.stderr) as progress:

        def reopen(device: str, dtype: str) -> LoadedModel:
            progress.pause()
            return replace(choice, device=device, dtype=dtype).open()

        report = explain.verify(
            loaded,
            text,
            reopen=reopen,
            adapted=choice.adapter is not None,
            progress=progress,
            parse_special=prompt.parse_special,
        )
    output.show(report, render.print_verify)
