"""What the config file and the environment set: which option, to what, and whether it can be that.

A key at the top of the file holds for every command that has such an option, one in a table [generate] for
that command alone; keys are the options' long names without the dashes. LLMCLI_TEMPERATURE and
LLMCLI_GENERATE_TEMPERATURE are the same in the environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import click

from llmcli.commands.shell.config_file import VARIABLE, config_path, expanded
from llmcli.errors import LlmcliError, did_you_mean, usage_error

ENTRIES = "llmcli.entries"  # under which a context keeps what the file sets for its command


@dataclass(frozen=True)
class Entry:
    """An option as the file sets it: under which key, ``value`` as TOML has it, ``taken`` as click takes it."""

    key: str
    value: Any
    taken: Any


def entries(
    raw: Mapping[str, Any], command: click.Command, commands: Mapping[str, click.Command]
) -> tuple[dict[str, Entry], list[LlmcliError]]:
    """What the file sets for ``command``, by the parameter's name, and what is wrong with it.

    ``commands`` are all by name: a key at the top may be an option of another.
    """
    own, found, faults = options_of(command), {}, []
    tables = {key: value for key, value in raw.items() if isinstance(value, dict)}
    tops = {key: value for key, value in raw.items() if key not in tables}
    faults += [unknown(f"[{key}]", "command", key, commands) for key in tables if key not in commands]
    for key in tops:
        if hyphened(key) not in own and not any(hyphened(key) in options_of(other) for other in commands.values()):
            names = {name for other in commands.values() for name in options_of(other)}
            faults.append(unknown(key, "option", hyphened(key), names))
    for table, values in (("", tops), (f"{command.name}.", tables.get(command.name or "", {}))):
        seen: dict[str, str] = {}
        for key, value in values.items():
            option = own.get(hyphened(key))
            if option is None:
                faults += [unknown(table + key, f"option of {command.name}", hyphened(key), own)] if table else []
                continue
            if option.name in seen:
                faults.append(fault(table + key, f"{table}{seen[option.name]} says the same already", "keep one"))
            seen[option.name] = key
            try:
                found[option.name] = Entry(table + key, value, taken(option, value))
            except click.BadParameter as error:
                faults.append(fault(table + key, error.message.rstrip("."), ""))
    return found, faults


def taken(option: click.Option, value: Any) -> Any:
    """A value of the file as click takes it. Errors (BadParameter): of the wrong kind, or out of range."""
    if option.multiple:
        return [one(option, part) for part in (value if isinstance(value, list) else [value])]
    return one(option, value)


def one(option: click.Option, value: Any) -> Any:
    """Likewise, one value."""
    kinds, wanted = kinds_of(option)
    if isinstance(value, list):
        wanted = "one value"
    if type(value) not in kinds:
        raise click.BadParameter(f"{wanted} is wanted, not {shown(value)}")
    if isinstance(value, str) and "\0" in value:  # which no word of a command line holds
        raise click.BadParameter("a text without the character NUL is wanted")
    if isinstance(option.type, click.Path):
        value = str(expanded(value))
    option.type(value, option, None)
    return value


def kinds_of(option: click.Option) -> tuple[tuple[type, ...], str]:
    """Which of TOML's types an option takes, and their name."""
    if option.is_flag:
        return (bool,), "true or false"
    if isinstance(option.type, click.types.IntParamType):
        return (int,), "a whole number"
    if option.type.name == "number":
        return (int, float), "a number"
    if option.type.name == "numbers":
        return (int, str), "a number, or several in quotes,"
    return (str,), "text in quotes"


def shown(value: Any) -> str:
    """A value of the file in a message or a table."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(shown(part) for part in value) + "]"
    return "a table" if isinstance(value, dict) else f'"{value}"' if isinstance(value, str) else str(value)


def options_of(command: click.Command) -> dict[str, click.Option]:
    """Its options by each of their long names, without the dashes."""
    return {
        name[2:]: option
        for option in command.params
        if isinstance(option, click.Option)
        for name in option.opts
        if name.startswith("--")
    }


def key_of(option: click.Option) -> str:
    """The first long name of an option, without the dashes."""
    return next((name for name in option.opts if name.startswith("--")), option.opts[0]).lstrip("-")


def hyphened(key: str) -> str:
    return key.replace("_", "-")


def unknown(place: str, what: str, word: str, known: Iterable[str]) -> LlmcliError:
    return fault(place, f"there is no such {what}", did_you_mean(word, known) or "llmcli config COMMAND lists them")


def fault(place: str, message: str, hint: str) -> LlmcliError:
    return usage_error(f"{config_path()}: {place}: {message}", hint)


def place(ctx: click.Context, option: click.Option) -> str | None:
    """Where an option of the context was set: a variable, or the file and the key; None for elsewhere."""
    source = ctx.get_parameter_source(option.name)
    if source is click.core.ParameterSource.ENVIRONMENT:
        return variable_of(option)
    if source is click.core.ParameterSource.DEFAULT_MAP:
        return f"{config_path()}: {ctx.meta[ENTRIES][option.name].key}"
    return None


def variable_of(option: click.Option) -> str | None:
    """The environment variable that sets an option just now."""
    return next((name for name in variables(option) if os.environ.get(name)), None)


def variables(option: click.Option) -> Iterator[str]:
    """Those that can, the strongest first."""
    yield from [option.envvar] if isinstance(option.envvar, str) else option.envvar or ()


def variables_of(command: str, option: click.Option) -> list[str]:
    """The environment variables of a command's option: its own, then the one that all commands share."""
    long = key_of(option).replace("-", "_").upper()
    own = f"LLMCLI_{command}_{long}".replace("-", "_").upper()
    shared = f"LLMCLI_{long}"
    return [own] if shared == VARIABLE else [own, shared]  # that one names the config file
