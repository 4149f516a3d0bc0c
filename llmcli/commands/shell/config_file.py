"""The config file and the environment variables that set options.

A key at the top of the file applies to every command that has the option, a key in a table such as [generate] to that
command only. Keys are the long names of options without the dashes. LLMCLI_TEMPERATURE and
LLMCLI_GENERATE_TEMPERATURE do the same in the environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click

from llmcli.errors import LlmcliError, did_you_mean, usage_error
from llmcli.files.toml import read_toml

VARIABLE = "LLMCLI_CONFIG"
FILE_SETTINGS = "llmcli.file_settings"  # the key of a context's ``meta`` for what the file sets


@dataclass(frozen=True)
class FileSetting:
    """An option that the file sets: its key, the ``value`` in TOML, and ``click_value``, which click parses."""

    key: str
    value: Any
    click_value: Any


def config_path() -> Path:
    """Return the path of the config file, which need not exist: LLMCLI_CONFIG or the default."""
    if os.environ.get(VARIABLE):
        return expand_user(os.environ[VARIABLE])
    return config_folder() / "config.toml"


def config_folder() -> Path:
    """Return the folder for llmcli's config and history files, which need not exist."""
    if sys.platform == "win32":
        return Path(click.get_app_dir("llmcli", roaming=True))
    xdg = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    # The XDG specification says to ignore relative paths.
    return (xdg if xdg.is_absolute() else expand_user("~/.config")) / "llmcli"


def expand_user(path: str) -> Path:
    """Replace a leading ~ or ~user with the home folder; return the path unchanged if there is no such user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib raises if there is no such user)


def read_config() -> dict[str, Any]:
    """Return the contents of the config file, or {} if there is none. Raises LlmcliError if it is not valid TOML."""
    path = config_path()
    if not os.environ.get(VARIABLE) and not path.exists():
        return {}
    return read_toml(path, f"{VARIABLE} names it", "as in: temperature = 0.7")


def file_settings(
    config: Mapping[str, Any], command: click.Command, commands: Mapping[str, click.Command]
) -> tuple[dict[str, FileSetting], list[LlmcliError]]:
    """Return what the file sets for ``command``, by parameter name, and the errors in the file.

    ``commands`` are all commands by name: a key at the top may be an option of another command.
    """
    own, settings = options_by_name(command), {}
    tables = {key: value for key, value in config.items() if isinstance(value, dict)}
    top = {key: value for key, value in config.items() if key not in tables}
    errors = [unknown_name(f"[{key}]", "command", key, commands) for key in tables if key not in commands]
    all_names = {name for other in commands.values() for name in options_by_name(other)}
    errors += [unknown_name(key, "option", hyphenate(key), all_names) for key in top if hyphenate(key) not in all_names]
    for table, values in (("", top), (f"{command.name}.", tables.get(command.name or "", {}))):
        seen: dict[str, str] = {}
        for key, value in values.items():
            option = own.get(hyphenate(key))
            if option is None:
                if table:
                    errors.append(unknown_name(table + key, f"option of {command.name}", hyphenate(key), own))
                continue
            if option.name in seen:
                errors.append(
                    file_error(table + key, f"sets the same option as {table}{seen[option.name]}", "keep one")
                )
            seen[option.name] = key
            try:
                settings[option.name] = FileSetting(table + key, value, check_values(option, value))
            except click.BadParameter as error:
                errors.append(file_error(table + key, error.message.rstrip("."), ""))
    return settings, errors


def check_values(option: click.Option, value: Any) -> Any:
    """Return a value of the file in the form that click parses. Raises BadParameter for a wrong type or range."""
    if option.multiple:
        return [check_value(option, part) for part in (value if isinstance(value, list) else [value])]
    return check_value(option, value)


def check_value(option: click.Option, value: Any) -> Any:
    """Return one value in the form that click parses. Raises BadParameter for a wrong type or range."""
    types, expected = toml_types(option)
    if isinstance(value, list):
        expected = "one value"
    if type(value) not in types:
        raise click.BadParameter(f"must be {expected}, not {format_value(value)}")
    if isinstance(value, str) and "\0" in value:  # the command line cannot contain it either
        raise click.BadParameter("must not contain the character NUL")
    if isinstance(option.type, click.Path):
        value = str(expand_user(value))
    option.type(value, option, None)
    return value


def toml_types(option: click.Option) -> tuple[tuple[type, ...], str]:
    """Return the TOML types that an option accepts, and their description."""
    if option.is_flag:
        return (bool,), "true or false"
    if isinstance(option.type, click.types.IntParamType):
        return (int,), "a whole number"
    if option.type.name == "number":
        return (int, float), "a number"
    if option.type.name == "numbers":
        return (int, str), "a number, or several in quotes"
    return (str,), "text in quotes"


def format_value(value: Any) -> str:
    """Return a value of the file as text for a message or a table."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(format_value(part) for part in value) + "]"
    return "a table" if isinstance(value, dict) else f'"{value}"' if isinstance(value, str) else str(value)


def options_by_name(command: click.Command) -> dict[str, click.Option]:
    """Return the options of a command by each of their long names, without the dashes."""
    return {
        name[2:]: option
        for option in command.params
        if isinstance(option, click.Option)
        for name in option.opts
        if name.startswith("--")
    }


def key_of(option: click.Option) -> str:
    """Return an option's key in the config file: its first long name without the dashes."""
    return next((name for name in option.opts if name.startswith("--")), option.opts[0]).lstrip("-")


def hyphenate(key: str) -> str:
    """Return a key with hyphens for underscores: both spellings are accepted."""
    return key.replace("_", "-")


def unknown_name(key: str, kind: str, name: str, known: Iterable[str]) -> LlmcliError:
    """Return the error for a key whose command or option does not exist, with a suggestion."""
    hint = suggestion(name, frozenset(known)) or "llmcli config COMMAND lists the options"
    return file_error(key, f"no such {kind}", hint)


@cache
def suggestion(name: str, known: frozenset[str]) -> str:
    """Return a hint with similar names. Cached: a search takes a millisecond, and each command would repeat it."""
    return did_you_mean(name, sorted(known))


def file_error(key: str, message: str, hint: str) -> LlmcliError:
    """Return an error about a key of the config file."""
    return usage_error(f"{config_path()}: {key}: {message}", hint)


def source_of(ctx: click.Context, option: click.Option) -> str | None:
    """Return the variable, or the file and key, that set an option; None if neither did."""
    source = ctx.get_parameter_source(option.name)
    if source is click.core.ParameterSource.ENVIRONMENT:
        return variable_in_use(option)
    if source is click.core.ParameterSource.DEFAULT_MAP:
        return f"{config_path()}: {ctx.meta[FILE_SETTINGS][option.name].key}"
    return None


def variable_in_use(option: click.Option) -> str | None:
    """Return the environment variable that sets an option at the moment, if any."""
    names = [option.envvar] if isinstance(option.envvar, str) else option.envvar or ()
    return next((name for name in names if os.environ.get(name)), None)


def variables_of(command: str, option: click.Option) -> list[str]:
    """Return the environment variables of a command's option: that of the command, then that of all commands."""
    long = key_of(option).replace("-", "_").upper()
    own = f"LLMCLI_{command}_{long}".replace("-", "_").upper()
    shared = f"LLMCLI_{long}"
    return [own] if shared == VARIABLE else [own, shared]  # VARIABLE names the config file
