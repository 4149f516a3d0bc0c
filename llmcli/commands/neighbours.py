"""``llmcli neighbours``: which tokens mean alike?"""

from __future__ import annotations

import click

from llmcli import explain, render
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.model import ModelChoice, model_options
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.shell.command import Command


@click.command(cls=Command)
@click.argument("word")
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="How many neighbours.")
@output_options
@model_options
@verbose_option
def neighbours(word: str, top: int, output: OutputOptions, choice: ModelChoice, verbose: bool) -> None:
    """Which tokens mean alike? Compare WORD's embedding, a vector, with that of every other token.

    WORD is one token (with a space before it, where there is such a token), or a sum: words with + and - between
    them, in quotes and with spaces around. A word of several tokens has no vector of its own and is refused.

    \b
    Examples:
      llmcli neighbours king
      llmcli neighbours "king - man + woman"
    """
    output.show(explain.neighbours(choice.open(), word, top=top), render.print_neighbours)
