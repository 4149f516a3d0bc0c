"""``llmcli tour``: how does a language model work?"""

from __future__ import annotations

import sys

import click

from llmcli import explain, render
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.model import ModelChoice, model_options
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.options.prompt import Prompt, prompt_options
from llmcli.commands.shell.command import Command
from llmcli.errors import EXIT_FAILURE


@click.command(cls=Command)
@prompt_options("sentence")
@click.option("--no-pause", is_flag=True, help="Do not wait for Enter after each stop.")
@output_options
@model_options
@verbose_option
def tour(prompt: Prompt, no_pause: bool, output: OutputOptions, choice: ModelChoice, verbose: bool) -> None:
    """How does a language model work? Walk through one sentence in eight stops, with the model's real numbers.

    Tokens, vectors, position, attention, layers, probabilities, temperature, the loop: each stop is a view of its own
    (attend, lens, …) that can be called on any text. SENTENCE may be your own, of a few words; where the output is
    no terminal, nothing waits.

    \b
    Examples:
      llmcli tour
      llmcli tour "Once upon a time there was a fox" --no-pause
    """
    text = prompt.read_optional()
    loaded = choice.open()

    report = explain.tour(loaded, text)
    if no_pause or output.as_json or sys.stdin is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        output.show(report, render.print_tour)
        return
    for number in range(len(render.TOUR_STOPS)):
        render.print_tour_stop(report, sys.stdout, number)
        if number < len(render.TOUR_STOPS) - 1 and click.prompt(
            "\nEnter: go on, q: leave", default="", show_default=False, prompt_suffix=" "
        ).strip().lower() in ("q", "quit"):
            break
    output.save_picture(lambda stream: render.print_tour(report, stream))
    if not report.check.ok:
        sys.exit(EXIT_FAILURE)
