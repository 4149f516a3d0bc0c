"""``llmcli neighbours``: which tokens have similar embeddings?"""

from __future__ import annotations

import click

from llmcli import explain, render
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.model import ModelChoice, describe_model, view_model_options
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.shell.command import Command


@click.command(cls=Command)
@click.argument("word")
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="Show the N nearest tokens.")
@click.option("--no-inputs", is_flag=True, help="Omit the words of a sum from the ranking.")
@output_options
@view_model_options
@verbose_option
def neighbours(word: str, top: int, no_inputs: bool, output: OutputOptions, choice: ModelChoice) -> None:
    """Which tokens have similar meanings? Compare WORD's embedding with the embedding of every other token.

    WORD must be a single token; if the vocabulary has the word with a space before it, that token is used. It can
    also be a sum in quotes, with spaces around + and -. A sum is compared with its first word alone, to show what the
    arithmetic changed. A word of several tokens is an error: it has no embedding of its own.

    \b
    Examples:
      llmcli neighbours king
      llmcli neighbours "king - man + woman"
      llmcli neighbours "king - man + woman" --no-inputs
    """
    loaded = choice.open()

    report = explain.neighbours(loaded, word, top=top, inputs=not no_inputs)
    output.show(report, render.print_neighbours, models=[describe_model(loaded)])
