"""``--choices`` and the options for how a model is asked: the answers to choose from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import click

from llmcli import generation, text
from llmcli.commands.options.common import bundle
from llmcli.commands.options.model import ModelChoice
from llmcli.commands.options.prompt import read_text_file
from llmcli.commands.options.template import Template, template_of
from llmcli.commands.shell.help import Decorator
from llmcli.errors import usage_error


def parse_choices(given: str) -> list[str]:
    """Parse choices separated by commas, without the spaces around them, a JSON list of strings, or a file of them.

    A file has one choice per line, or a JSON list. Raises LlmcliError if it cannot be read.
    """
    if is_file(given):
        name, given = given, read_text_file(Path(given))
        if not given.strip():
            raise usage_error(f"{name} has no choices", "write one in each line")
        if not given.lstrip().startswith("["):
            return [line for line in given.splitlines() if line.strip()]
    if not given.lstrip().startswith("["):
        return [choice.strip() for choice in given.split(",")]
    try:
        choices = json.loads(given)
    except (ValueError, RecursionError):
        choices = None
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise usage_error(
            "--choices begins with [ but is not a JSON list of strings", """for example '["yes", "no, never"]'"""
        )
    return choices


def is_file(given: str) -> bool:
    """Return whether ``given`` is the name of a file."""
    try:
        return Path(given).is_file()
    except (OSError, ValueError):  # no possible name
        return False


@dataclass(frozen=True)
class ChoiceOptions:
    """The answers to choose from, if they were given, and how they follow the prompt."""

    texts: tuple[str, ...] | None
    delimiter: str | None
    end: bool
    chat: bool
    system_prompt: str | None

    def prompt(self, given: str) -> str | list[text.Message]:
        """Return a prompt or, for a chat, the messages that ask it."""
        if not self.chat:
            return given
        first = [] if self.system_prompt is None else [text.Message("system", self.system_prompt)]
        return [*first, text.Message("user", given)]

    def template(self, choice: ModelChoice, template: Template | None = None) -> text.ChatTemplate | None:
        """Return the chat template if it applies. Raises LlmcliError if there is none, or if a given one does not."""
        if template is not None and template.given and not self.chat:
            raise usage_error("--template and --template-arg need --apply-chat-template", "add it")
        return template_of(choice, "omit --apply-chat-template", template) if self.chat else None


def check_options(
    choices: str | None, delimiter: str | None, end: bool, chat: bool, system_prompt: str | None
) -> ChoiceOptions:
    """Return the options. Raises LlmcliError if there are not at least two valid choices."""
    if system_prompt is not None and not chat:
        raise usage_error("--system-prompt needs --apply-chat-template", "add it")
    texts = None if choices is None else tuple(parse_choices(choices))
    if texts is not None:
        generation.check_several(texts)
    return ChoiceOptions(texts, delimiter, end, chat, system_prompt)


CHOICES_HELP = (
    'A file with one per line, or a list; a JSON list if one has a comma or begins with a space: \'[" yes", " no"]\'.'
)


def choice_options(purpose: str) -> Decorator:
    """Return ``--choices`` and its options, passed as ``asked``; the help of ``--choices`` begins with ``purpose``."""
    return bundle(
        "asked",
        check_options,
        click.option("--choices", metavar="FILE|A,B,C", help=f"{purpose} {CHOICES_HELP}"),
        click.option(
            "--delimiter",
            metavar="TEXT",
            help="What separates a choice from a prompt that does not end with a space or line break.  "
            "[default: a space, in a chat nothing]",
        ),
        click.option("--end", is_flag=True, help="Count a choice only if the text ends after it."),
        click.option(
            "--apply-chat-template",
            "chat",
            is_flag=True,
            help="Ask a chat model: the prompt is a message in its chat template, a choice the beginning of the reply.",
        ),
        click.option(
            "--system-prompt", "-s", metavar="TEXT", help="Instructions before the message of --apply-chat-template."
        ),
        title="Choices",
    )
