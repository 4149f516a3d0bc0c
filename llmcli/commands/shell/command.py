"""What all commands have in common: grouped help, and options that the config file and the environment may set."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any, Literal

import click

from llmcli.commands.shell import help as helping
from llmcli.commands.shell.config_file import read_config
from llmcli.commands.shell.help import plainly
from llmcli.commands.shell.settings import ENTRIES, entries, hyphened, key_of, place, variables_of
from llmcli.commands.shell.torchrun import torchrun
from llmcli.errors import EXIT_USAGE, LlmcliError, usage_error


class Command(click.Command):
    """A command of llmcli.

    An option is what the command line says, or else the environment, the config file, its own default. A
    fault of the file is told after --help had its turn, which so always runs.

    ``together`` tells whether processes that torchrun started can run it: all of them alike, or the first one alone,
    whose model the others ``share``.
    """

    def __init__(self, *args: Any, together: Literal["no", "alike", "share"] = "no", **more: Any) -> None:
        super().__init__(*args, **more)
        self.together = together
        helping.name_values(self.params)
        for option in self.params:
            if isinstance(option, click.Option):
                option.envvar = variables_of(self.name or "", option)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        faults = [] if ctx.resilient_parsing else apply_config(ctx)
        ctx.allow_extra_args = True
        try:
            rest = super().parse_args(ctx, args)
        except click.BadParameter as error:
            raise LlmcliError(plainly(error.format_message()), hint_for(ctx, error), exit_code=EXIT_USAGE) from error
        if rest and not ctx.resilient_parsing:
            texts = any(isinstance(parameter, click.Argument) for parameter in self.params)
            hint = "a text of several words stands in quotes" if texts else f"see {ctx.command_path} --help"
            raise usage_error(f"unexpected: {' '.join(rest)}", hint)
        if faults:
            raise faults[0]
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        world = torchrun()
        if world.size > 1 and self.together == "no":
            raise usage_error(f"{self.name} runs in one process", "start it without torchrun")
        if world.rank > 0 and self.together == "share":
            from llmcli.commands.options.distributed import DistributedModelChoice, follow

            return follow(
                DistributedModelChoice(
                    **{field.name: ctx.params[field.name] for field in fields(DistributedModelChoice)}
                ),
                world,
            )
        try:
            return super().invoke(ctx)
        except LlmcliError as error:
            if error.exit_code == EXIT_USAGE:
                error.hint = "; ".join(part for part in (error.hint, *places(ctx, error.message)) if part)
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        ctx.default_map = None  # what is told are the defaults without a config file
        helping.write_options(self, ctx, formatter)


def commands_of(ctx: click.Context) -> dict[str, Command]:
    """All commands whose options can be set, by name."""
    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    found = {name: group.get_command(ctx, name) for name in group.list_commands(ctx)}
    return {name: command for name, command in found.items() if isinstance(command, Command)}


def apply_config(ctx: click.Context) -> list[LlmcliError]:
    """Make the config file's values the defaults of the context's command; what is wrong with them."""
    if ctx.parent is None:
        return []
    try:
        raw = read_config()
    except LlmcliError as error:
        return [error]
    found, faults = entries(raw, ctx.command, commands_of(ctx)) if raw else ({}, [])
    ctx.default_map = {name: entry.taken for name, entry in found.items()}
    ctx.meta[ENTRIES] = found
    return faults


def hint_for(ctx: click.Context, error: click.BadParameter) -> str:
    """Where the bad value stands, if not on the command line."""
    where = place(ctx, error.param) if isinstance(error.param, click.Option) else None
    return f"from {where}" if where else f"see {ctx.command_path} --help"


def places(ctx: click.Context, message: str) -> list[str]:
    """Where the options that a message speaks of were set, if not on the command line."""
    found = []
    for option in ctx.command.params:
        if isinstance(option, click.Option) and (where := place(ctx, option)):
            name = key_of(option)
            if re.search(rf"(?<![\w-])(--)?{name}(?![\w-])", hyphened(message)):
                found.append(f"{name} is from {where}")
    return found
