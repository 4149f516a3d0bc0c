"""``llmcli decide``: which of these answers does the model prefer?"""

from __future__ import annotations

from functools import partial

import click

from llmcli import explain, render, text
from llmcli.commands.options.changes import Changes, change_options
from llmcli.commands.options.choices import ChoiceOptions, choice_options
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.model import ModelChoice, describe_model, view_model_options
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.options.prompt import Prompt, prompt_options
from llmcli.commands.options.template import Template, template_options
from llmcli.commands.shell.command import Command
from llmcli.errors import usage_error


@click.command(cls=Command)
@prompt_options()
@choice_options("The answers, at least two.")
@template_options
@click.option(
    "--top", type=click.IntRange(min=0), default=20, show_default=True, help="Show the N most probable. 0: all."
)
@output_options
@view_model_options
@change_options
@verbose_option
def decide(
    prompt: Prompt,
    asked: ChoiceOptions,
    template: Template,
    top: int,
    output: OutputOptions,
    choice: ModelChoice,
    changes: Changes,
) -> None:
    """Which of these answers does the model prefer? Show the probability of each, of one or of many tokens.

    A choice is compared with the other choices, and with everything else that the model could say. Long choices are
    less probable than short ones; per token, they compete on equal terms. The prompt is read once, and so are the
    tokens that several choices begin with. llmcli batch --choices asks many questions.

    \b
    Examples:
      llmcli decide "Once upon a time there was a" --choices girl,boy,dragon
      llmcli decide "Ice is very" --choices '["cold", "cold, not hot"]'
      llmcli decide "Is ice cold?" --choices Yes,No --apply-chat-template
    """
    if asked.texts is None:
        raise usage_error("no choices", "give them with --choices, as in --choices yes,no")
    given, chat = prompt.read(), asked.template(choice, template)
    loaded = changes.apply(choice.open())

    report = explain.decide(
        loaded,
        asked.prompt(given),
        asked.texts,
        delimiter=asked.delimiter,
        end=asked.end,
        form=None if chat is None else text.TemplateFormat(chat, loaded.tokenizer),
        parse_special=prompt.parse_special,
    )
    output.show(report, partial(render.print_decide, top=top), prompt=given, models=[describe_model(loaded)])
