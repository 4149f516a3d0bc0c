"""The choices of a question as texts: which are valid, and how they follow the prompt. This module imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from llmcli.errors import usage_error
from llmcli.text.surrogates import is_unicode

MAX_CHOICES = 10_000
DELIMITER = " "  # between a prompt and a choice


def check_choices(choices: Sequence[str]) -> None:
    """Raise LlmcliError if there are no choices, too many, or one is empty, repeated or not valid Unicode."""
    if not choices:
        raise usage_error("there are no choices", "for example yes,no,maybe")
    if "" in choices:
        raise usage_error("a choice is empty", "for example yes,no,maybe")
    repeated = next((choice for choice, count in Counter(choices).items() if count > 1), None)
    if repeated is not None:
        raise usage_error(f"the choice {repeated!r} is given twice", "give each choice once")
    if not all(map(is_unicode, choices)):
        raise usage_error("a choice is not valid Unicode", "use UTF-8")
    if len(choices) > MAX_CHOICES:
        raise usage_error(f"{len(choices)} choices are too many", f"give at most {MAX_CHOICES}")


def check_several(choices: Sequence[str]) -> None:
    """Raise LlmcliError unless there are at least two valid choices."""
    check_choices(choices)
    if len(choices) < 2:
        raise usage_error(f"{choices[0]!r} is the only choice", "give at least two, as in yes,no, or a file of choices")


def joined(prompt: str, choice: str, delimiter: str = DELIMITER) -> str:
    """Return what follows ``prompt``: the choice, after ``delimiter`` unless a space or line break is there already."""
    separated = not prompt or prompt[-1].isspace() or choice[:1].isspace()
    return choice if separated else delimiter + choice
