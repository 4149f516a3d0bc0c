"""Options that several commands share, and how their values become what the library takes."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import click

Decorator = Callable[[Any], Any]

DEVICES = ("auto", "cpu", "cuda", "mps")
MOST_THREADS = 1024  # torch crashes where the system grants no more


class Real(click.ParamType[float]):
    """A number; not-a-number is refused here, ranges where the number is used."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if math.isnan(number):
            self.fail("nan is not a number", param, ctx)
        return number


class Line(click.types.StringParamType):
    """Text of an option that may be repeated: in its environment variable, one value a line."""

    envvar_list_splitter = "\n"


def bundle(name: str, build: Callable[..., Any], *decorators: Decorator) -> Decorator:
    """Several option decorators as one. The command gets what ``build`` makes of their values, as ``name``.

    --help shows them in the order given; ``build`` takes exactly their parameters.
    """
    taken = inspect.signature(build).parameters

    def decorate(command: Any) -> Any:
        @functools.wraps(command)
        def call(**values: Any) -> Any:
            built = build(**{parameter: values.pop(parameter) for parameter in taken})
            return command(**{name: built}, **values)

        for decorator in reversed(decorators):
            call = decorator(call)
        return call

    return decorate


device_option = click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True)
threads_option = click.option(
    "--threads", type=click.IntRange(1, MOST_THREADS), help="CPU threads.  [default: all that the system allows]"
)

offline_option = click.option("--offline", is_flag=True, help="Download nothing; HF_HUB_OFFLINE=1 means the same.")

verbose_option = click.option("--verbose", is_flag=True, help="Say more; show a traceback with an error.")
