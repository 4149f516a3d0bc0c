"""``llmcli branch``: what are the most probable continuations?"""

from __future__ import annotations

import click

from llmcli import explain, render
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.location import at_option
from llmcli.commands.options.model import ModelChoice, describe_model, view_model_options
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.options.prompt import Prompt, prompt_options
from llmcli.commands.shell.command import Command


@click.command(cls=Command)
@prompt_options()
@at_option
@click.option("--width", type=click.IntRange(min=1), default=3, show_default=True, help="Branches at each position.")
@click.option(
    "--depth", type=click.IntRange(min=1), default=3, show_default=True, help="Levels of the tree, one token each."
)
@output_options
@view_model_options
@verbose_option
def branch(prompt: Prompt, at: str, width: int, depth: int, output: OutputOptions, choice: ModelChoice) -> None:
    """What if the model had chosen another token? Show the most probable continuations as a tree.

    The tree starts with the --width most probable tokens and branches again after each of them, --depth levels deep.
    It shows the probability of each token and of the path to it. These are the model's own probabilities: no
    sampling filter applies.

    \b
    Examples:
      llmcli branch "Once upon a time there was"
      llmcli branch "The king was" --width 2 --depth 5
    """
    text = prompt.read()
    loaded = choice.open()

    report = explain.branch(loaded, text, position=at, width=width, depth=depth, parse_special=prompt.parse_special)
    output.show(report, render.print_branch, prompt=text, models=[describe_model(loaded)])
