"""``llmcli neighbours``: which tokens have similar embeddings?"""

from __future__ import annotations

import click

from llmcli import explain, render
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.model import ModelChoice, model_options
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.shell.command import Command


@click.command(cls=Command)
@click.argument("word")
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="Show the N nearest tokens.")
@output_options
@model_options
@verbose_option
def neighbours(word: str, top: int, output: OutputOptions, choice: ModelChoice, verbose: bool) -> None:
    """Which tokens have similar meanings? Compare WORD's embedding with the embedding of every other token.

    WORD must be a single token; if the vocabulary has the word with a space before it, that token is used. It can
    also be a sum in quotes, with spaces around + and -. A word of several tokens is an error: it has no embedding of
    its own.

    \b
    Examples:
      llmcli neighbours king
      llmcli neighbours "king - man + woman"
    """
    output.show(explain.neighbours(choice.open(), word, top=top), render.print_neighbours)
