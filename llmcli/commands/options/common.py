"""Options that several commands share, and how their values become what the library takes."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import click

from llmcli.commands.shell.help import OTHER, PLAIN, Decorator, under
from llmcli.errors import did_you_mean

DEVICES = ("auto", "cpu", "cuda", "mps")
MOST_THREADS = 1024  # torch crashes where the system grants no more


class Real(click.ParamType[float]):
    """A number, perhaps not below ``least``; not-a-number is refused here, other ranges where it is used."""

    name = "number"

    def __init__(self, least: float = -math.inf) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if math.isnan(number):
            self.fail("nan is not a number", param, ctx)
        if number < self.least:
            self.fail(f"{value} is below {self.least:g}", param, ctx)
        return number


class Choice(click.Choice[str]):
    """One of a few words; of a mistyped one the nearest is named."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        near = did_you_mean(str(value), self.choices)
        return super().get_invalid_choice_message(value, ctx).rstrip(".") + (f"; {near}" if near else "")


class Line(click.types.StringParamType):
    """Text of an option that may be repeated: in its environment variable, one value a line."""

    envvar_list_splitter = "\n"


def bundle(
    name: str,
    build: Callable[..., Any],
    *decorators: Decorator,
    title: str = PLAIN,
    parameters: Sequence[str] | None = None,
) -> Decorator:
    """Several option decorators as one. The command gets what ``build`` makes of their values, as ``name``.

    --help shows them in the order given, under the heading ``title``; ``build`` takes exactly their parameters.
    ``parameters`` names them if its signature does not.
    """
    taken = inspect.signature(build).parameters if parameters is None else parameters

    def decorate(command: Any) -> Any:
        @functools.wraps(command)
        def call(**values: Any) -> Any:
            built = build(**{parameter: values.pop(parameter) for parameter in taken})
            return command(**{name: built}, **values)

        return under(title, *decorators)(call)

    return decorate


device_option = click.option(
    "--device",
    type=Choice(DEVICES),
    default="auto",
    show_default=True,
    metavar="DEVICE",
    help="auto (a GPU if there is one), cpu, cuda or mps.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(1, MOST_THREADS), help="CPU threads.  [default: all that the system allows]"
)
offline_option = click.option("--offline", is_flag=True, help="Download nothing; HF_HUB_OFFLINE=1 means the same.")
verbose_option = under(OTHER, click.option("--verbose", is_flag=True, help="Say more; show a traceback with an error."))
