"""--help in groups: options under headings, aligned with one another, and said in plain words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import click

Decorator = Callable[[Any], Any]

PLAIN, OTHER = "Options", "Other"
MOST_WIDTH = 23  # of the column of names: longer ones have their help below
# What stands for a value in place of click's names for types.
METAVARS = {"integer range": "N", "integer": "N", "number": "X", "numbers": "N,…", "text": "TEXT", "path": "FILE"}
_RANGE = re.compile(r"  \[[-\d<=]*x[-<>=\d]+\]$|; [-\d<=]*x[-<>=\d]+(?=\]$)")  # of a number, as click writes it
_headings: WeakKeyDictionary[click.Parameter, str] = WeakKeyDictionary()


def heading(title: str) -> Decorator:
    """A decorator that stands above options as a heading does: it is that of all below it that have none yet."""

    def decorate(command: Any) -> Any:
        for parameter in _parameters(command):
            _headings.setdefault(parameter, title)
        return command

    return decorate


def under(title: str, *decorators: Decorator) -> Decorator:
    """Option decorators as one, in the order given, that --help shows under ``title``."""

    def decorate(command: Any) -> Any:
        before = set(_parameters(command))
        for decorator in reversed(decorators):
            command = decorator(command)
        _headings.update({parameter: title for parameter in _parameters(command) if parameter not in before})
        return command

    return decorate


def _parameters(command: Any) -> list[click.Parameter]:
    """Those that decorators have given to a function by now."""
    found: list[click.Parameter] = getattr(command, "__click_params__", [])
    return found


def write_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """The options of ``command``, each group in the place of its first, and last what every command has."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for option in command.get_params(ctx):
        if isinstance(option, click.Option) and (row := option.get_help_record(ctx)):
            title = OTHER if option is command.get_help_option(ctx) else _headings.get(option, PLAIN)
            groups.setdefault(title, []).append((row[0], _RANGE.sub("", row[1])))
    last = groups.pop(OTHER, [])
    if set(groups) <= {PLAIN}:  # too few to be told apart
        groups = {PLAIN: groups.get(PLAIN, []) + last}
    else:
        groups[OTHER] = last
    write_groups(groups, formatter)


def write_groups(groups: Mapping[str, Sequence[tuple[str, str]]], formatter: click.HelpFormatter) -> None:
    """A section each, with the column of names equally wide in all."""
    width = max((len(name) for rows in groups.values() for name, _ in rows if len(name) <= MOST_WIDTH), default=0)
    for title, rows in groups.items():
        with formatter.section(title):
            formatter.write_dl([(f"{name:<{width}}", told) for name, told in rows], col_max=MOST_WIDTH)


def plainly(message: str) -> str:
    """What click says of a wrong value, on one line and without its names for types."""
    return re.sub("is not a valid integer( range)?", "is not a whole number", message.replace("\n\t", " "))


def name_values(options: Sequence[click.Parameter]) -> None:
    """Give each option that takes a value, and says not what to call it, a short name for it."""
    for option in options:
        if isinstance(option, click.Option) and option.metavar is None and not option.is_flag:
            option.metavar = METAVARS.get(option.type.name)
