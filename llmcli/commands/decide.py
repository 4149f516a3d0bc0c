"""``llmcli decide``: which of these answers does the model prefer?"""

from __future__ import annotations

from functools import partial

import click

from llmcli import explain, generation, render, text
from llmcli.commands.options.ablation import Ablation, ablation_options
from llmcli.commands.options.choices import CHOICES_HELP, delimiter_option, parse_choices
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.model import ModelChoice, describe_model, view_model_options
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.options.prompt import Prompt, prompt_options
from llmcli.commands.options.template import template_of
from llmcli.commands.shell.command import Command
from llmcli.errors import usage_error


@click.command(cls=Command)
@prompt_options()
@click.option("--choices", metavar="FILE|A,B,C", required=True, help=f"The answers. {CHOICES_HELP}")
@delimiter_option
@click.option("--end", is_flag=True, help="Count a choice only if the text ends after it.")
@click.option(
    "--apply-chat-template",
    "chat",
    is_flag=True,
    help="Ask a chat model: the prompt is a message in its chat template, a choice the beginning of the reply.",
)
@click.option("--system-prompt", "-s", metavar="TEXT", help="Instructions before the message of --apply-chat-template.")
@click.option(
    "--top", type=click.IntRange(min=0), default=20, show_default=True, help="Show the N most probable. 0: all."
)
@output_options
@view_model_options
@ablation_options
@verbose_option
def decide(
    prompt: Prompt,
    choices: str,
    delimiter: str | None,
    end: bool,
    chat: bool,
    system_prompt: str | None,
    top: int,
    output: OutputOptions,
    choice: ModelChoice,
    ablation: Ablation,
) -> None:
    """Which of these answers does the model prefer? Show the probability of each, of one or of many tokens.

    A choice is compared with the other choices, and with everything else that the model could say. Long choices are
    less probable than short ones; per token, they compete on equal terms. The prompt is read once, and so are the
    tokens that several choices begin with. llmcli batch --choices asks many questions.

    \b
    Examples:
      llmcli decide "Once upon a time there was a little" --choices girl,boy,dragon
      llmcli decide "Ice is very" --choices '["cold", "cold, not hot"]'
      llmcli decide "Is ice cold?" --choices Yes,No --apply-chat-template
    """
    given = prompt.read()
    texts = parse_choices(choices)
    if system_prompt is not None and not chat:
        raise usage_error("--system-prompt needs --apply-chat-template", "add it")
    generation.check_several(texts)
    template = template_of(choice, "omit --apply-chat-template") if chat else None
    loaded = ablation.apply(choice.open())

    report = explain.decide(
        loaded,
        given if template is None else messages(given, system_prompt),
        texts,
        delimiter=delimiter,
        end=end,
        form=None if template is None else text.TemplateFormat(template, loaded.tokenizer),
        parse_special=prompt.parse_special,
    )
    output.show(report, partial(render.print_decide, top=top), prompt=given, models=[describe_model(loaded)])


def messages(prompt: str, system_prompt: str | None) -> list[text.Message]:
    """The prompt as a message of the user, after the system prompt if there is one."""
    first = [] if system_prompt is None else [text.Message("system", system_prompt)]
    return [*first, text.Message("user", prompt)]
