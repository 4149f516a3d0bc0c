"""``llmcli tour``: how does a language model work?"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from llmcli import explain, render
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.model import ModelChoice, describe_model, view_model_options
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.options.prompt import Prompt, prompt_options
from llmcli.commands.shell.command import Command
from llmcli.errors import EXIT_FAILURE
from llmcli.render import json_forms

QUIT, QUITS = -1, ("q", "quit")


@click.command(cls=Command)
@prompt_options("sentence")
@click.option("--no-pause", is_flag=True, help="Do not wait for Enter after each stop.")
@click.option("--quiz", is_flag=True, help="Ask a question before each stop, which the stop answers.")
@output_options
@view_model_options
@verbose_option
def tour(prompt: Prompt, no_pause: bool, quiz: bool, output: OutputOptions, choice: ModelChoice) -> None:
    """How does a language model work? A guided tour follows one sentence through the model, with real numbers.

    The stops are tokens, vectors, position, attention, layers, probabilities, temperature, the generation loop, and
    the effect of attention. Most of them have a command of their own (attend, lens, …) that works on any text. Without
    SENTENCE, the tour uses a built-in one. It pauses only in a terminal; elsewhere --quiz prints each question before
    its stop, and the answer after it.

    \b
    Examples:
      llmcli tour
      llmcli tour --quiz
      llmcli tour "Once upon a time there was a fox" --no-pause
    """
    text = prompt.read_optional()
    loaded = choice.open()

    report, model = explain.tour(loaded, text), describe_model(loaded)
    draw = render.print_quiz if quiz else render.print_tour
    if no_pause or output.as_json or sys.stdin is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        output.show(report, draw, json_forms.quiz if quiz else None, models=[model])
        return
    with render.at_most(model.digits):
        walk(report, render.quiz_questions(report) if quiz else [])
    render.print_model_lines([model], sys.stdout)
    output.save_picture(lambda stream: draw(report, stream), models=[model])
    if not report.check.ok:
        sys.exit(EXIT_FAILURE)


def walk(report: explain.TourReport, questions: Sequence[render.QuizQuestion]) -> None:
    """Show the stops one by one, each after its question, until the last one or q. Ends with the score, if any."""
    by_stop, right, asked = {question.stop: question for question in questions}, 0, 0
    last = len(render.TOUR_STOPS) - 1
    for number in range(last + 1):
        answer = ""
        if number in by_stop:
            question = by_stop[number]
            render.print_question(question, sys.stdout)
            chosen = answer_to(question)
            if chosen == QUIT:
                break
            asked += 1
            right += chosen == question.answer
            answer = render.verdict(question, chosen)
        render.print_tour_stop(report, sys.stdout, number)
        if number == last and answer:
            render.print_line(f"\n{answer}", sys.stdout, "bold")
        if number < last and ask(f"{answer} Press Enter to continue, q to quit".strip()).lower() in QUITS:
            break
    if asked:
        render.print_quiz_score(right, asked, sys.stdout)


def answer_to(question: render.QuizQuestion) -> int | None:
    """Return the choice that the user types, QUIT, or None for Enter alone; anything else is asked again."""
    last = render.LETTERS[len(question.choices) - 1]
    while True:
        typed = ask(f"Type a to {last}, Enter to skip, q to quit")
        if typed.lower() in QUITS:
            return QUIT
        if not typed or question.chosen(typed) is not None:
            return question.chosen(typed)


def ask(text: str) -> str:
    """Return the line that the user types."""
    typed: str = click.prompt(f"\n{text}", default="", show_default=False, prompt_suffix=" ")
    return typed.strip()
