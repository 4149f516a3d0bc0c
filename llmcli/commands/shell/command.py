"""The base class of all commands: help in groups, and options from the config file and the environment."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import click

from llmcli.commands.shell import help as helping
from llmcli.commands.shell.config_file import (
    FILE_SETTINGS,
    file_settings,
    hyphenate,
    key_of,
    read_config,
    source_of,
    variables_of,
)
from llmcli.commands.shell.help import simplify_message
from llmcli.commands.shell.torchrun import RankInfo, torchrun_rank
from llmcli.errors import EXIT_USAGE, LlmcliError, usage_error

ARGUMENTS = "llmcli.arguments"  # key in a context's meta
_TEXT = re.compile(r"-.*\s|-[0-9.]", re.DOTALL)  # more likely a text than a mistyped option
Follower = Callable[[Mapping[str, Any], RankInfo], int]


class Command(click.Command):
    """A command of llmcli.

    The value of an option comes from the command line, the environment, the config file or its default, in this
    order. Errors in the config file are raised after parsing, so that --help always works.

    ``together`` says what happens under torchrun. With "no" it is an error; with "all", all processes run the command.
    With a function, only the first process runs it: the others call the function, with the command's parameters, to
    share the model.
    """

    def __init__(self, *args: Any, together: Literal["no", "all"] | Follower = "no", **more: Any) -> None:
        super().__init__(*args, **more)
        self.together = together
        helping.set_metavars(self.params)
        for option in self.params:
            if isinstance(option, click.Option):
                option.envvar = variables_of(self.name or "", option)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        config_errors = [] if ctx.resilient_parsing else apply_config(ctx)
        ctx.allow_extra_args = True
        ctx.meta[ARGUMENTS] = tuple(args)
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            words = (word for word in arguments_of(ctx) if word.startswith(error.option_name) and _TEXT.match(word))
            text = next(words, None)
            if text is None or not self._takes_text():
                raise
            hint = f"if it is a text, put it last, after --: {ctx.command_path} -- TEXT"
            raise usage_error(f"{text[:60]!r} begins with - but is not an option", hint) from error
        except click.BadParameter as error:
            raise LlmcliError(
                simplify_message(error.format_message()), hint_for(ctx, error), exit_code=EXIT_USAGE
            ) from error
        if rest and not ctx.resilient_parsing:
            quotes = "put a text of several words in quotes" if self._takes_text() else ""
            model = "name a model with -m" if any("-m" in option.opts for option in self.params) else ""
            hint = ", and ".join(part for part in (quotes, model) if part) or f"see {ctx.command_path} --help"
            if "--" in arguments_of(ctx) and rest[0].startswith("-"):
                hint = "put options before --"
            raise usage_error(f"unexpected argument: {' '.join(rest)}", hint)
        if config_errors:
            first, *others = config_errors
            if others:
                more = f"{len(others)} more: llmcli config lists all"
                first.hint = "; ".join(part for part in (first.hint, more) if part)
            raise first
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        info = torchrun_rank()
        if info.size > 1 and self.together == "no":
            raise usage_error(f"{self.name} runs in one process", "run it without torchrun")
        if info.rank > 0 and callable(self.together):
            return self.together(ctx.params, info)
        try:
            return super().invoke(ctx)
        except LlmcliError as error:
            if error.exit_code == EXIT_USAGE:
                error.hint = "; ".join(part for part in (error.hint, *sources(ctx, error.message)) if part)
            raise

    def _takes_text(self) -> bool:
        return any(isinstance(parameter, click.Argument) for parameter in self.params)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        ctx.default_map = None  # show the defaults of llmcli, not those of the config file
        helping.write_options(self, ctx, formatter)


def arguments_of(ctx: click.Context) -> tuple[str, ...]:
    """Return the words of the command line after the command's name."""
    return tuple(ctx.meta[ARGUMENTS])


def commands_of(ctx: click.Context) -> dict[str, Command]:
    """Return all commands whose options the config file can set, by name."""
    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    commands = {name: group.get_command(ctx, name) for name in group.list_commands(ctx)}
    return {name: command for name, command in commands.items() if isinstance(command, Command)}


def apply_config(ctx: click.Context) -> list[LlmcliError]:
    """Make the values in the config file the defaults of the context's command. Returns the errors in the file."""
    if ctx.parent is None:
        return []
    try:
        config = read_config()
    except LlmcliError as error:
        return [error]
    settings, errors = file_settings(config, ctx.command, commands_of(ctx)) if config else ({}, [])
    ctx.default_map = {name: setting.click_value for name, setting in settings.items()}
    ctx.meta[FILE_SETTINGS] = settings
    return errors


def hint_for(ctx: click.Context, error: click.BadParameter) -> str:
    """Return the hint for a bad value: where it was set, if not on the command line."""
    source = source_of(ctx, error.param) if isinstance(error.param, click.Option) else None
    return f"from {source}" if source else f"see {ctx.command_path} --help"


def sources(ctx: click.Context, message: str) -> list[str]:
    """Return where the options named in a message were set, if not on the command line."""
    found = []
    for option in ctx.command.params:
        if isinstance(option, click.Option) and (source := source_of(ctx, option)):
            name = key_of(option)
            if re.search(rf"(?<![\w-])(--)?{name}(?![\w-])", hyphenate(message)):
                found.append(f"{name} is from {source}")
    return found
