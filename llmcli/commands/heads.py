"""``llmcli heads``: what does each attention head look for?"""

from __future__ import annotations

import sys

import click

from llmcli import explain, render
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.model import ModelChoice, describe_model, view_model_options
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.options.prompt import Prompt, prompt_options
from llmcli.commands.shell.command import Command


@click.command(cls=Command)
@prompt_options("text")
@output_options
@view_model_options
@verbose_option
def heads(prompt: Prompt, output: OutputOptions, choice: ModelChoice) -> None:
    """What does each attention head look for? Find heads of known kinds, and remove them to see what they do.

    Scores every head on random tokens that occur twice, and on TEXT if it is given: how much of its attention goes to
    the previous token, to earlier occurrences of the same token, to what followed those (induction), and to the first
    token. Then it removes the best head of each kind: the change in the loss shows what that head was good for.

    \b
    Examples:
      llmcli heads
      llmcli heads "Tom was a boy. Lily was a girl. Tom saw Lily."
      llmcli heads --json
    """
    text = prompt.read_optional()
    loaded = choice.open()
    with render.CountProgress(sys.stderr, "removing", "heads") as progress:
        report = explain.heads(loaded, text, parse_special=prompt.parse_special, progress=progress)
    output.show(report, render.print_heads, prompt=text, models=[describe_model(loaded)])
