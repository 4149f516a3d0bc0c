"""``llmcli config``: show which options are set, and where they are set."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import click

from llmcli import render
from llmcli.commands.options.common import bundle_errors
from llmcli.commands.shell.command import Command, commands_of
from llmcli.commands.shell.config_file import (
    VARIABLE,
    FileSetting,
    config_path,
    file_settings,
    hyphenate,
    key_of,
    read_config,
    variable_in_use,
    variables_of,
)
from llmcli.commands.shell.help import simplify_message
from llmcli.commands.shell.hints import hint_of
from llmcli.errors import EXIT_USAGE, LlmcliError, did_you_mean, usage_error


def complete_command(ctx: click.Context, argument: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of commands that start with ``incomplete``."""
    return [name for name in commands_of(ctx) if name.startswith(incomplete)]


# A plain click command: it takes no options from the config file, so it works even if the file is broken.
@click.command()
@click.argument("command", required=False, shell_complete=complete_command)
@click.option("--path", "only_path", is_flag=True, help="Print only the path of the config file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def config(command: str | None, only_path: bool, as_json: bool) -> None:
    """Show which options are set, and where. With COMMAND, show all options of that command.

    An option given on the command line comes first; then the environment variables LLMCLI_<COMMAND>_<OPTION> and
    LLMCLI_<OPTION>; then the config file; then the default. Keys in the file are the names of options without the
    leading dashes: at the top for every command that has the option, in a table for one command. An option that can be
    repeated takes a list. The default file is ~/.config/llmcli/config.toml; set LLMCLI_CONFIG to use another one:

    \b
      temperature = 0.7
      threads = 2

    \b
      [generate]
      max-tokens = 200
      stop = ["The end", "THE END"]

    \b
    Examples:
      llmcli config
      llmcli config generate
      llmcli config --path
    """
    if only_path:
        render.print_path(config_path(), sys.stdout)
        return
    commands = commands_of(click.get_current_context())
    if command is not None and command not in commands:
        raise usage_error(f"{command} is not a command with options", did_you_mean(command, commands))
    config, errors = read_or_error()
    for name in commands if command is None else [command]:
        found, more = file_settings(config, commands[name], commands)
        errors += [*more, *value_errors(commands[name], found)]
    if command is None:
        rows = [*set_in_environment(commands), *set_in_file(config)]
    else:
        rows = [setting(commands[command], option, found) for option in options(commands[command])]
    problems = list(dict.fromkeys(str(error) for error in errors)) + stray_variables(commands)
    if as_json:
        render.write_settings_json(config_path(), rows, problems, sys.stdout)
    else:
        render.print_settings(config_path(), rows, problems, sys.stdout, sys.stderr, command=command)
    if errors:
        sys.exit(EXIT_USAGE)


def read_or_error() -> tuple[dict[str, Any], list[LlmcliError]]:
    """Return the contents of the config file, and the error if it cannot be read."""
    try:
        return read_config(), []
    except LlmcliError as error:
        return {}, [error]


def value_errors(command: Command, found: Mapping[str, FileSetting]) -> Iterator[LlmcliError]:
    """Yield what is wrong with a command's values in the environment, and with those that have the right type."""
    ctx, values, origins = click.get_current_context(), {}, {}
    for option in options(command):
        name, variable = str(option.name), variable_in_use(option)
        raw: Any = found[name].click_value if name in found else None
        origin = f"{config_path()}: {found[name].key}" if name in found else ""
        if variable is not None:
            text, origin = os.environ[variable], variable
            raw = option.type.split_envvar_value(text) if option.multiple else text
        try:
            if origin:
                values[name], origins[name] = option.type_cast_value(ctx, raw), origin
        except click.BadParameter as error:
            yield usage_error(f"{origin}: {simplify_message(error.message).rstrip('.')}")
    for name, wrong in bundle_errors(command, values):
        yield usage_error(f"{origins[name]}: {wrong.message}", hint_of(wrong))


def options(command: Command) -> list[click.Option]:
    """Return the options of a command."""
    return [option for option in command.params if isinstance(option, click.Option)]


def setting(command: Command, option: click.Option, found: Mapping[str, FileSetting]) -> render.Setting:
    """Return the value that an option of a command has if the command line does not set it, and its source."""
    name, variable = key_of(option), variable_in_use(option)
    if variable is not None:
        return render.Setting(name, command.name, os.environ[variable], "environment", variable)
    if option.name in found:
        in_file = found[option.name]
        return render.Setting(name, command.name, json_value(in_file.value), "file", in_file.key)
    return render.Setting(name, command.name, default_of(option), "default", None)


def default_of(option: click.Option) -> Any:
    """Return an option's default, or its description in --help if it is not one value; None if it is off."""
    described = re.search(r"\[default: (.*)\]$", option.help or "")
    if described:
        return described[1]
    value = option.to_info_dict()["default"]
    return value if not option.multiple else None


def set_in_file(config: Mapping[str, Any]) -> Iterator[render.Setting]:
    """Yield every key in the file, including keys that are not options."""
    for key, value in config.items():
        for name, part in value.items() if isinstance(value, dict) else [(key, value)]:
            table = key if isinstance(value, dict) else None
            yield render.Setting(hyphenate(name), table, json_value(part), "file", f"{table}.{name}" if table else name)


def json_value(value: Any) -> Any:
    """Return a value of the file as a JSON value: dates, tables, NaN and infinities become text."""
    if isinstance(value, list):
        return [json_value(part) for part in value]
    return value if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)) else str(value)


def set_in_environment(commands: Mapping[str, Command]) -> Iterator[render.Setting]:
    """Yield every environment variable that sets an option."""
    for variable, (command, option) in known_variables(commands).items():
        if value := os.environ.get(variable):
            yield render.Setting(key_of(option), command, value, "environment", variable)


def known_variables(commands: Mapping[str, Command]) -> dict[str, tuple[str | None, click.Option]]:
    """Return the variables of all options, each with its option and command (None for all commands)."""
    found: dict[str, tuple[str | None, click.Option]] = {}
    for name, command in commands.items():
        for option in options(command):
            own, *shared = variables_of(name, option)
            found[own] = (name, option)
            found.update(dict.fromkeys(shared, (None, option)))
    return found


def stray_variables(commands: Mapping[str, Command]) -> list[str]:
    """Return a message for each LLMCLI_ variable that sets no option, with a suggestion."""
    known = known_variables(commands)
    strays = sorted(name for name in os.environ if name.startswith("LLMCLI_") and name not in {*known, VARIABLE})
    hints = [did_you_mean(name, known) for name in strays]
    return [f"{name} sets no option" + (f" ({hint})" if hint else "") for name, hint in zip(strays, hints, strict=True)]
