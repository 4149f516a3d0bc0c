"""``llmcli patch``: which parts carry the difference between two texts?"""

from __future__ import annotations

import sys
from functools import partial
from typing import Literal

import click

from llmcli import explain, render
from llmcli.commands.options.common import Choice, verbose_option
from llmcli.commands.options.model import ModelChoice, describe_model, view_model_options
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.shell.command import Command


@click.command(cls=Command)
@click.argument("clean")
@click.argument("corrupt")
@click.option(
    "--token",
    metavar="TOKEN",
    help="The answer to CLEAN: a token's text, such as ' her', or its id.  [default: the most probable]",
)
@click.option(
    "--vs", "other", metavar="TOKEN", help="The answer to CORRUPT, in the same form.  [default: the most probable]"
)
@click.option(
    "--part",
    type=Choice(("residual", "attn", "mlp")),
    default="residual",
    show_default=True,
    help="What the map patches: the residual stream after each layer, attention, or the MLP.",
)
@click.option(
    "--path",
    nargs=2,
    metavar="FROM TO",
    help="Also patch one path: what FROM adds, as TO alone reads it; for example 3.2 4.5, or mlp.1 4.5.",
)
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Show the N heads and MLPs with the largest effects. 0: all.",
)
@click.option("--parse-special", is_flag=True, help="Read special tokens in the texts as tokens, not as text.")
@output_options
@view_model_options
@verbose_option
def patch(
    clean: str,
    corrupt: str,
    token: str | None,
    other: str | None,
    part: Literal["residual", "attn", "mlp"],
    path: tuple[str, str] | None,
    top: int,
    parse_special: bool,
    output: OutputOptions,
    choice: ModelChoice,
) -> None:
    """Which parts carry the difference between two texts? Put parts of CLEAN into CORRUPT, and see what comes back.

    Both texts must have the same number of tokens, and different answers: --token is that of CLEAN, --vs that of
    CORRUPT, by default the most probable tokens. The model reads CORRUPT, but one part's result is that for CLEAN. The
    effect is the share of the logit difference that this restores (activation patching).

    \b
    Examples:
      llmcli patch "Lily lost" "Tom lost" --token " her" --vs " his"
      llmcli patch "Lily lost" "Tom lost" --vs " his" --part mlp
      llmcli patch "Lily lost" "Tom lost" --vs " his" --path mlp.0 4.4
    """
    loaded = choice.open()
    with render.CountProgress(sys.stderr, "patching", "layers") as progress:
        report = explain.patch(
            loaded,
            clean,
            corrupt,
            token=token,
            other=other,
            part=part,
            path=path,
            parse_special=parse_special,
            progress=progress,
        )
    output.show(report, partial(render.print_patch, top=top), models=[describe_model(loaded)])
