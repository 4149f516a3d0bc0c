"""``llmcli tour``: how does a language model work?"""

from __future__ import annotations

import sys

import click

from llmcli import explain, render
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.model import ModelChoice, describe_model, view_model_options
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.options.prompt import Prompt, prompt_options
from llmcli.commands.shell.command import Command
from llmcli.errors import EXIT_FAILURE


@click.command(cls=Command)
@prompt_options("sentence")
@click.option("--no-pause", is_flag=True, help="Do not wait for Enter after each stop.")
@output_options
@view_model_options
@verbose_option
def tour(prompt: Prompt, no_pause: bool, output: OutputOptions, choice: ModelChoice) -> None:
    """How does a language model work? A guided tour follows one sentence through the model, with real numbers.

    The stops are tokens, vectors, position, attention, layers, probabilities, temperature, the generation loop, and
    the effect of attention. Most of them have a command of their own (attend, lens, …) that works on any text. Without
    SENTENCE, the tour uses a built-in one. It pauses only in a terminal.

    \b
    Examples:
      llmcli tour
      llmcli tour "Once upon a time there was a fox" --no-pause
    """
    text = prompt.read_optional()
    loaded = choice.open()

    report, model = explain.tour(loaded, text), describe_model(loaded)
    if no_pause or output.as_json or sys.stdin is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        output.show(report, render.print_tour, models=[model])
        return
    for number in range(len(render.TOUR_STOPS)):
        with render.at_most(model.digits):
            render.print_tour_stop(report, sys.stdout, number)
        if number < len(render.TOUR_STOPS) - 1 and click.prompt(
            "\nPress Enter to continue, q to quit", default="", show_default=False, prompt_suffix=" "
        ).strip().lower() in ("q", "quit"):
            break
    render.print_model_lines([model], sys.stdout)
    output.save_picture(lambda stream: render.print_tour(report, stream), models=[model])
    if not report.check.ok:
        sys.exit(EXIT_FAILURE)
