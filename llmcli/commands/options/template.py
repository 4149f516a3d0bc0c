"""``--template`` and ``--template-arg``: which chat template, and the variables that it gets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from llmcli import text
from llmcli.commands.options.common import Line, bundle
from llmcli.commands.options.model import ModelChoice, find_model
from llmcli.errors import LlmcliError, usage_error
from llmcli.hub import name_of


@dataclass(frozen=True)
class Template:
    """The values of the options: the template's ``file``, if it is not the model's own, and its ``arguments``."""

    file: Path | None
    arguments: dict[str, Any]

    @property
    def given(self) -> bool:
        return self.file is not None or bool(self.arguments)

    def of(self, folder: Path, hint: str = "give it a template with --template") -> text.ChatTemplate:
        """Return the chat template for the model in ``folder``. Raises LlmcliError, with ``hint``, if it has none."""
        template = text.find_template(folder, self.file)
        if template is None:
            raise LlmcliError(f"{name_of(folder)} has no chat template: it was not trained to chat", hint)
        return template.with_arguments(self.arguments)


def template_of(choice: ModelChoice, hint: str, template: Template | None = None) -> text.ChatTemplate:
    """Return the chat template of a model, before its weights are loaded. Raises the errors of ``Template.of``."""
    return (template or Template(None, {})).of(find_model(choice.model, choice.offline), hint)


def parse_template(template_file: Path | None, template_arg: tuple[str, ...]) -> Template:
    """Check the form of the options."""
    return Template(template_file, dict(map(parse_argument, template_arg)))


def parse_argument(argument: str) -> tuple[str, Any]:
    """Parse NAME=VALUE; a value that is not JSON is a string. Raises LlmcliError for any other form."""
    name, sign, value = argument.partition("=")
    if not sign or not name.isidentifier():
        raise usage_error(f"--template-arg takes NAME=VALUE, not {argument!r}", "for example enable_thinking=false")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


template_options = bundle(
    "template",
    parse_template,
    click.option(
        "--template",
        "template_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Use the chat template in FILE (Jinja) instead of the model's own.",
    ),
    click.option(
        "--template-arg",
        multiple=True,
        type=Line(),
        metavar="NAME=VALUE",
        help="Pass a variable to the chat template; the value as JSON, or else as text. Repeatable.",
    ),
    title="Chat",
)
