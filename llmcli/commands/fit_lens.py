"""``llmcli fit-lens``: fit a tuned lens or a Jacobian lens to a model."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click

from llmcli import explain, render
from llmcli import train as training
from llmcli.commands.options.common import Choice, verbose_option
from llmcli.commands.options.lens_file import KINDS, save_lens
from llmcli.commands.options.model import ModelChoice, describe_model, view_model_options
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.shell.command import Command


@click.command(cls=Command)
@click.argument("kind", type=Choice(KINDS))
@click.argument("textfile", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--tokens",
    type=click.IntRange(min=1, max=2**30),
    help="Tokens to fit on, at most.  [default: tuned 16384, jacobian 512]",
)
@click.option("--seed", type=click.INT, default=0, show_default=True, help="Seed of the order of the texts.")
@output_options
@view_model_options
@verbose_option
def fit_lens(
    kind: explain.LensKind,
    textfile: tuple[Path, ...],
    tokens: int | None,
    seed: int,
    output: OutputOptions,
    choice: ModelChoice,
) -> None:
    """Fit a lens to a model on the text of the TEXTFILEs, for `llmcli lens --tuned` and `llmcli lens --jacobian`.

    KIND tuned: a map for each layer, trained so that the lens predicts what the model predicts. KIND jacobian: how
    the last layer changes with each layer, averaged over texts; it needs no training. The lens is saved beside the
    model. The table compares it with the plain lens on text that was held out.

    TEXTFILEs are text (documents separated by <|endoftext|>) or JSON Lines with a "text"; both can be .gz or .xz.

    \b
    Examples:
      llmcli fit-lens tuned stories.txt
      llmcli fit-lens jacobian stories.txt --tokens 1024
    """
    texts = [example.text for example in training.read_examples(textfile)]
    loaded = choice.open_restored()
    with render.CountProgress(sys.stderr, "fitting", "steps") as progress:
        _, report = explain.fit_lens(
            loaded, texts, kind, tokens=tokens, seed=seed, save=partial(save_lens, loaded), progress=progress
        )
    output.show(report, render.print_fit_lens, models=[describe_model(loaded)])
    render.note(f"saved to {render.one_line(str(report.path))}", sys.stderr)
