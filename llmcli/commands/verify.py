"""``llmcli verify``: does llmcli run this model correctly here?"""

from __future__ import annotations

import sys
from dataclasses import replace

import click

from llmcli import explain, generation, render
from llmcli.commands.options.common import Line, verbose_option
from llmcli.commands.options.model import ModelChoice, complete_model, describe_model, model_options
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.options.prompt import Prompt, prompt_options
from llmcli.commands.shell.command import Command


@click.command(cls=Command)
@prompt_options()
@click.option(
    "--against",
    type=Line(),
    metavar="MODEL",
    shell_complete=complete_model,
    help="Also compare with the model that this one was converted from.",
)
@output_options
@model_options
@verbose_option
def verify(prompt: Prompt, against: str | None, output: OutputOptions, choice: ModelChoice) -> None:
    """Does llmcli run this model correctly here? Test your checkpoint on your device and in your dtype.

    The model processes a text in every supported way (whole, token by token, in batches, …), which must give the
    same logits. It is compared with itself on other devices and in other dtypes and, if transformers is installed,
    with transformers, layer by layer. Checks that are impossible here are skipped, with the reason. Without PROMPT,
    a built-in text is used. The exit code is 1 if a check fails.

    --against says whether a GGUF file is faithful to its original: tokens, chat template, config, weights and logits.

    \b
    Examples:
      llmcli verify
      llmcli verify "Once upon a time there was a fox" --dtype float32
      llmcli verify --quantize int8 --json
      llmcli verify -m name.Q8_0.gguf --against org/name
    """
    text = prompt.read_optional()
    loaded = choice.open()
    original = None
    if against is not None:
        original = ModelChoice(
            against, offline=choice.offline, device="cpu", dtype="float32", threads=choice.threads
        ).open_restored()
    with render.VerifyProgress(sys.stderr) as progress:

        def reopen(device: str, dtype: str) -> generation.LoadedModel:
            progress.pause()
            return replace(choice, device=device, dtype=dtype).open()

        report = explain.verify(
            loaded,
            text,
            reopen=reopen,
            adapted=choice.adapter is not None,
            original=original,
            progress=progress,
            parse_special=prompt.parse_special,
        )
    output.show(report, render.print_verify, prompt=text, models=[describe_model(loaded)])
