"""``--choices`` and ``--delimiter``: the answers to choose from."""

from __future__ import annotations

import json
from pathlib import Path

import click

from llmcli.commands.options.prompt import read_text_file
from llmcli.errors import usage_error


def parse_choices(text: str) -> list[str]:
    """Parse choices separated by commas, without the spaces around them, a JSON list of strings, or a file of them.

    A file has one choice per line, or a JSON list. Raises LlmcliError if it cannot be read.
    """
    if is_file(text):
        text = read_text_file(Path(text))
        if not text.lstrip().startswith("["):
            return [line for line in text.splitlines() if line.strip()]
    if not text.lstrip().startswith("["):
        return [choice.strip() for choice in text.split(",")]
    try:
        choices = json.loads(text)
    except (ValueError, RecursionError):
        choices = None
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise usage_error(
            "--choices begins with [ but is not a JSON list of strings", """for example '["yes", "no, never"]'"""
        )
    return choices


def is_file(text: str) -> bool:
    """Return whether ``text`` is the name of a file."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # no possible name
        return False


CHOICES_HELP = (
    "A file with one per line, or a list. Use a JSON list if one contains a comma or begins with a space: "
    '\'[" yes", " no"]\'.'
)
delimiter_option = click.option(
    "--delimiter",
    metavar="TEXT",
    help="What separates a choice from a prompt that does not end with a space or line break.  [default: a space, in a "
    "chat nothing]",
)
