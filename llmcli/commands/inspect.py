"""``llmcli inspect``: what is in this model, and does it fit in memory?"""

from __future__ import annotations

import click

from llmcli import explain, render
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.model import ModelChoice, model_options
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.shell.command import Command
from llmcli.commands.shell.interrupt import import_torch
from llmcli.hub import name_of


@click.command(cls=Command)
@click.option(
    "--context",
    "tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Length of a text that must fit, in tokens.  [default: the model's context]",
)
@output_options
@model_options
@verbose_option
def inspect(tokens: int | None, output: OutputOptions, choice: ModelChoice) -> None:
    """What is in this model, and does it fit in memory? Show its architecture, parameters and memory use.

    The numbers come from config.json and the headers of the weight files. If the model fits, it is then loaded with
    the given options, and its memory is measured.

    \b
    Examples:
      llmcli inspect
      llmcli inspect --quantize int4
      llmcli inspect -m llama-tales-12m --context 256 --dtype bfloat16
    """
    folder, adapter = choice.find()
    import_torch()

    report = explain.inspect_folder(
        name_of(folder),
        folder,
        adapter,
        device=choice.device,
        dtype=choice.dtype,
        quantization=choice.quantization,
        tokens=tokens,
        open_model=choice.open,
    )
    label = render.ModelLabel(report.model, report.dtype, report.quantization)
    output.show(report, render.print_inspect, models=[label])
