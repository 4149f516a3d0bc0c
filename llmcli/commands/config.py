"""``llmcli config``: which options are set, and where."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands.shell.command import Command, commands_of
from llmcli.commands.shell.config_file import VARIABLE, config_path, read_config
from llmcli.commands.shell.settings import entries, hyphened, key_of, variable_of, variables_of
from llmcli.errors import EXIT_USAGE, LlmcliError, did_you_mean, usage_error

if TYPE_CHECKING:
    from llmcli.render.settings import Setting


def complete_command(ctx: click.Context, argument: click.Parameter, begun: str) -> list[str]:
    return [name for name in commands_of(ctx) if name.startswith(begun)]


# Reads no options from the config file itself, so that it runs whatever stands there.
@click.command()
@click.argument("command", required=False, shell_complete=complete_command)
@click.option("--path", "only_path", is_flag=True, help="The config file's path alone.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def config(command: str | None, only_path: bool, as_json: bool) -> None:
    """Show which options are set, and where; with COMMAND, all that it has.

    An option is what the command line says; or else LLMCLI_<COMMAND>_<OPTION> or LLMCLI_<OPTION> in the
    environment; or else what stands in the config file; or else its default. Keys of the file are the options'
    names without the dashes, at the top for every command that has them, in a table for one; what may be repeated
    is a list. The file is ~/.config/llmcli/config.toml, or that of LLMCLI_CONFIG:

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
        click.echo(config_path())
        return
    commands = commands_of(click.get_current_context())
    if command is not None and command not in commands:
        raise usage_error(f"there is no command {command!r} with options to set", did_you_mean(command, commands))
    raw, faults = raw_config()

    from llmcli.render import settings as view

    if command is None:
        faults += [fault for each in commands.values() for fault in entries(raw, each, commands)[1]]
        rows = [*set_in_environment(commands), *set_in_file(raw)]
        strays = stray_variables(commands)
    else:
        found = entries(raw, commands[command], commands)
        faults += found[1]
        rows, strays = [setting(commands[command], option, found[0]) for option in options(commands[command])], []
    texts = list(dict.fromkeys(str(fault) for fault in faults)) + strays
    if as_json:
        view.write_settings_json(config_path(), rows, texts, sys.stdout)
    else:
        view.print_settings(config_path(), rows, texts, sys.stdout, sys.stderr, command=command)
    if faults:
        sys.exit(EXIT_USAGE)


def raw_config() -> tuple[dict[str, Any], list[LlmcliError]]:
    """What stands in the file, or what is wrong with it."""
    try:
        return read_config(), []
    except LlmcliError as error:
        return {}, [error]


def options(command: Command) -> list[click.Option]:
    return [option for option in command.params if isinstance(option, click.Option)]


def setting(command: Command, option: click.Option, found: Mapping[str, Any]) -> Setting:
    """An option of one command, and from where it would be taken without a word on the command line."""
    from llmcli.render.settings import Setting

    name, variable = key_of(option), variable_of(option)
    if variable is not None:
        return Setting(name, command.name, os.environ[variable], "environment", variable)
    if option.name in found:
        entry = found[option.name]
        return Setting(name, command.name, plain(entry.value), "file", entry.key)
    return Setting(name, command.name, default_of(option), "default", None)


def default_of(option: click.Option) -> Any:
    """Its default, or what --help says of it where that is not one value; None for off."""
    told = re.search(r"\[default: (.*)\]$", option.help or "")
    if told:
        return told[1]
    value = option.to_info_dict()["default"]
    return value if not option.multiple else None


def set_in_file(raw: Mapping[str, Any]) -> Iterator[Setting]:
    """Every key of the file, also those that no option has."""
    from llmcli.render.settings import Setting

    for key, value in raw.items():
        for name, part in value.items() if isinstance(value, dict) else [(key, value)]:
            table = key if isinstance(value, dict) else None
            yield Setting(hyphened(name), table, plain(part), "file", f"{table}.{name}" if table else name)


def plain(value: Any) -> Any:
    """A value of the file as JSON has one too: dates, tables and what no number is as text."""
    if isinstance(value, list):
        return [plain(part) for part in value]
    return value if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)) else str(value)


def set_in_environment(commands: Mapping[str, Command]) -> Iterator[Setting]:
    """Every variable that sets an option, once."""
    from llmcli.render.settings import Setting

    for variable, (command, option) in known_variables(commands).items():
        if value := os.environ.get(variable):
            yield Setting(key_of(option), command, value, "environment", variable)


def known_variables(commands: Mapping[str, Command]) -> dict[str, tuple[str | None, click.Option]]:
    """The variables of all options, each with its command (None where all share it)."""
    found: dict[str, tuple[str | None, click.Option]] = {}
    for name, command in commands.items():
        for option in options(command):
            own, *shared = variables_of(name, option)
            found[own] = (name, option)
            found.update(dict.fromkeys(shared, (None, option)))
    return found


def stray_variables(commands: Mapping[str, Command]) -> list[str]:
    """Of the LLMCLI_ variables those that set nothing, each with what it may have meant."""
    known = known_variables(commands)
    strays = sorted(name for name in os.environ if name.startswith("LLMCLI_") and name not in {*known, VARIABLE})
    hints = [did_you_mean(name, known) for name in strays]
    return [f"{name} sets no option" + (f" ({hint})" if hint else "") for name, hint in zip(strays, hints, strict=True)]
