"""Option types, groups of options, and the options that many commands share."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from llmcli.commands.shell.help import OTHER, PLAIN, Decorator, under
from llmcli.errors import LlmcliError, did_you_mean

DEVICES = ("auto", "cpu", "cuda", "mps")
# Threads or processes: with more than the machine can run at once, everything takes longer.
MOST_PARALLEL = max(8, 2 * (os.cpu_count() or 1))
MOST_TEXTS = 10_000  # that continue one prompt: all of them are kept in memory
MOST_IN_BATCH = 1024  # texts or requests at once


class Real(click.ParamType[float]):
    """A number of at least ``least``, not NaN. Code that uses the value checks any other limits."""

    name = "number"

    def __init__(self, least: float = -math.inf) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if math.isnan(number):
            self.fail("must be a number, not nan", param, ctx)
        if number < self.least:
            self.fail(f"{value} is less than {self.least:g}", param, ctx)
        return number


class Choice(click.Choice[str]):
    """One of several words. The error for a mistyped word suggests the closest one, or another option.

    ``elsewhere`` has the values that another option takes, such as "int8" for "--quantize int8".
    """

    def __init__(self, choices: Sequence[str], case_sensitive: bool = True, elsewhere: Sequence[str] = ()) -> None:
        super().__init__(choices, case_sensitive)
        self.elsewhere = {option.split()[-1]: option for option in elsewhere}

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        option = self.elsewhere.get(str(value).lower())
        near = f"use {option}" if option else did_you_mean(str(value), self.choices)
        known = ", ".join(map(repr, self.choices))
        return f"{value!r} is not one of {known}" + (f"; {near}" if near else "")


class Line(click.types.StringParamType):
    """Text of an option that can be repeated. Its environment variable holds one value per line."""

    envvar_list_splitter = "\n"


def bundle(
    name: str,
    build: Callable[..., Any],
    *decorators: Decorator,
    title: str = PLAIN,
    parameters: Sequence[str] | None = None,
) -> Decorator:
    """Combine option decorators into one, which passes ``build(**their values)`` to the command as ``name``.

    --help lists the options in the order given, under the heading ``title``. The parameters of ``build`` must be the
    options' parameters; if its signature does not list them, ``parameters`` does.
    """
    names = inspect.signature(build).parameters if parameters is None else parameters

    def decorate(command: Any) -> Any:
        @functools.wraps(command)
        def call(**values: Any) -> Any:
            built = build(**{parameter: values.pop(parameter) for parameter in names})
            return command(**{name: built}, **values)

        call.__dict__["bundles"] = [*getattr(command, "bundles", []), (frozenset(names), build)]
        return under(title, *decorators)(call)

    return decorate


def bundle_errors(command: click.Command, values: Mapping[str, Any]) -> Iterator[tuple[str, LlmcliError]]:
    """Yield each of ``values``, by parameter name, that the ``build`` of its bundle rejects, with the error.

    If all together are not valid, each value is checked alone, with the defaults of the other options.
    """
    ctx = click.get_current_context()
    defaults = {
        str(parameter.name): parameter.type_cast_value(ctx, parameter.to_info_dict().get("default"))
        for parameter in command.params
    }
    for names, build in getattr(command.callback, "bundles", []):

        def error_with(chosen: Mapping[str, Any], names: Any = names, build: Any = build) -> LlmcliError | None:
            try:
                build(**{name: chosen.get(name, defaults[name]) for name in names})
            except LlmcliError as error:
                return error
            return None

        given = {name: value for name, value in values.items() if name in names}
        if not given or error_with({}) is not None:  # the command line must set others of them
            continue
        together = error_with(given)
        if together is None:  # even if a value needs another one, as --strength needs --steer
            continue
        found = [(name, error) for name in given if (error := error_with({name: given[name]})) is not None]
        yield from found or [(next(iter(given)), together)]


def store_verbose(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    """Store --verbose, however it was set, for ``is_verbose`` and ``cli.LazyGroup.main``, which prints errors."""
    ctx.ensure_object(dict)["verbose"] = value


def is_verbose() -> bool:
    """Return whether the command that runs was given --verbose."""
    return bool(click.get_current_context().ensure_object(dict).get("verbose"))


device_option = click.option(
    "--device",
    type=Choice(DEVICES),
    default="auto",
    show_default=True,
    metavar="DEVICE",
    help="auto (a GPU if there is one), cpu, cuda or mps.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(1, MOST_PARALLEL), help="CPU threads.  [default: as many as the system allows]"
)
offline_option = click.option("--offline", is_flag=True, help="Do not download anything (as with HF_HUB_OFFLINE=1).")
verbose_option = under(
    OTHER,
    click.option(
        "--verbose",
        is_flag=True,
        is_eager=True,  # so that it applies to errors in the other options
        expose_value=False,
        callback=store_verbose,
        help="Print details; show a traceback for errors.",
    ),
)
