"""--help: options in groups under headings, aligned, with short names for values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import click

Decorator = Callable[[Any], Any]

PLAIN, OTHER = "Options", "Other"
MAX_NAME_WIDTH = 23  # the help of options with longer names starts on the next line
# click's name of a type -> the metavar to show
METAVARS = {"integer range": "N", "integer": "N", "number": "X", "numbers": "N,…", "text": "TEXT", "path": "FILE"}
_RANGE = re.compile(
    r"  \[[-\d<=]*x[-<>=\d]+\]$|; [-\d<=]*x[-<>=\d]+(?=\]$)"
)  # the range of a number, as click shows it
_headings: WeakKeyDictionary[click.Parameter, str] = WeakKeyDictionary()
_elsewhere: WeakKeyDictionary[click.Parameter, str] = WeakKeyDictionary()  # the command whose --help describes it


def heading(title: str) -> Decorator:
    """Put the options declared below this decorator under ``title`` in --help, unless they have a heading already."""

    def decorate(command: Any) -> Any:
        for parameter in _parameters(command):
            _headings.setdefault(parameter, title)
        return command

    return decorate


def under(title: str, *decorators: Decorator) -> Decorator:
    """Combine option decorators, in the order given, under the heading ``title`` in --help."""

    def decorate(command: Any) -> Any:
        before = set(_parameters(command))
        for decorator in reversed(decorators):
            command = decorator(command)
        _headings.update({parameter: title for parameter in _parameters(command) if parameter not in before})
        return command

    return decorate


def described_by(other: str, decorator: Decorator) -> Decorator:
    """Show the options of ``decorator`` but its first as one row of --help, which refers to the command ``other``."""

    def decorate(command: Any) -> Any:
        before = set(_parameters(command))
        command = decorator(command)
        *shared, _ = [
            parameter for parameter in _parameters(command) if parameter not in before
        ]  # the last comes first
        _elsewhere.update(dict.fromkeys(shared, other))
        return command

    return decorate


def _parameters(command: Any) -> list[click.Parameter]:
    """Return the parameters that click's decorators have attached to a function so far."""
    parameters: list[click.Parameter] = getattr(command, "__click_params__", [])
    return parameters


def write_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the options of ``command`` in groups, ordered by their first option, with the group "Other" last."""
    groups: dict[str, list[tuple[str, str]]] = {}
    shared: dict[tuple[str, str], list[str]] = {}  # names by heading and by the command that describes them
    for option in command.get_params(ctx):
        if isinstance(option, click.Option) and (row := option.get_help_record(ctx)):
            title = OTHER if option is command.get_help_option(ctx) else _headings.get(option, PLAIN)
            if option in _elsewhere:
                shared.setdefault((title, _elsewhere[option]), []).append(option.opts[0])
                continue
            groups.setdefault(title, []).append((row[0], _RANGE.sub("", row[1])))
    for (title, other), names in shared.items():
        groups.setdefault(title, []).append((" ".join(names), f"See `llmcli {other} --help`."))
    last = groups.pop(OTHER, [])
    if set(groups) <= {PLAIN}:  # no headings: one group
        groups = {PLAIN: groups.get(PLAIN, []) + last}
    else:
        groups[OTHER] = last
    write_groups(groups, formatter)


def write_groups(groups: Mapping[str, Sequence[tuple[str, str]]], formatter: click.HelpFormatter) -> None:
    """Write a section per group, with the same width of the name column in all of them."""
    width = max((len(name) for rows in groups.values() for name, _ in rows if len(name) <= MAX_NAME_WIDTH), default=0)
    for title, rows in groups.items():
        with formatter.section(title):
            formatter.write_dl([(f"{name:<{width}}", help) for name, help in rows], col_max=width or MAX_NAME_WIDTH)


def simplify_message(message: str) -> str:
    """Return click's message about a wrong value on one line, in plain words."""
    return re.sub("is not a valid integer( range)?", "is not a whole number", message.replace("\n\t", " "))


def set_metavars(options: Sequence[click.Parameter]) -> None:
    """Set a short metavar for each option that takes a value and does not have one."""
    for option in options:
        if isinstance(option, click.Option) and option.metavar is None and not option.is_flag:
            option.metavar = METAVARS.get(option.type.name)
