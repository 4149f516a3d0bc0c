"""``llmcli steer``: find a direction that changes what the model writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import click

from llmcli import explain, render, storage
from llmcli.commands.options.common import Choice, verbose_option
from llmcli.commands.options.model import ModelChoice, describe_model, view_model_options
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.options.prompt import read_text_file
from llmcli.commands.options.writable import check_writable
from llmcli.commands.shell.command import Command
from llmcli.errors import usage_error


@click.command(cls=Command)
@click.argument("positive", type=click.Path(path_type=Path))
@click.argument("negative", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--method",
    type=Choice(("mean", "pca")),
    default="mean",
    show_default=True,
    help="The difference of the means, or the first principal component of the differences between pairs.",
)
@click.option(
    "--layer",
    "layers",
    metavar="LAYERS",
    help="Save the directions of these layers, such as 2-4 or 3,-1.  [default: the layer that separates best]",
)
@click.option("--parse-special", is_flag=True, help="Read special tokens in the texts as tokens, not as text.")
@output_options
@view_model_options
@verbose_option
def steer(
    positive: Path,
    negative: Path,
    out: Path,
    method: Literal["mean", "pca"],
    layers: str | None,
    parse_special: bool,
    output: OutputOptions,
    choice: ModelChoice,
) -> None:
    """Find a direction that changes what the model writes: what tells two sets of texts apart.

    Each line of the files POSITIVE and NEGATIVE is a text. The direction leads from the mean of the residual stream
    after the negative texts to that after the positive ones. The layer at which it separates them best is saved in
    OUT, a .safetensors file or a .gguf control vector for llama.cpp; --layer chooses others. `generate --steer OUT`
    adds it.

    \b
    Examples:
      llmcli steer sad.txt happy.txt sad.safetensors
      llmcli steer sad.txt happy.txt sad.gguf --method pca --layer 2-4
    """
    if out.suffix not in storage.DIRECTION_SUFFIXES:
        raise usage_error(f"{out}: the file name must end in .safetensors or .gguf")
    check_writable("OUT", out)
    texts = [read_lines(path) for path in (positive, negative)]
    loaded = choice.open()
    with render.CountProgress(sys.stderr, "reading", "texts") as progress:
        report = explain.steer(
            loaded, *texts, method=method, layers=layers, parse_special=parse_special, progress=progress
        )
    storage.write_directions(out, report.directions)
    render.note(f"saved {out}", sys.stderr)
    output.show(report, render.print_steer, models=[describe_model(loaded)])


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty."""
    return [line for line in read_text_file(path).splitlines() if line.strip()]
