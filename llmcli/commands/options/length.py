"""The options that say how long a text may become, and where it ends; and ``--context-overflow``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands.options.common import Choice, Line, bundle
from llmcli.commands.shell.help import Decorator
from llmcli.errors import usage_error

if TYPE_CHECKING:
    from llmcli.generation.loaded import LoadedModel
    from llmcli.generation.overflow import Overflow

OVERFLOWS = ("error", "truncate-start", "shift")


@dataclass(frozen=True)
class Length:
    """The options that were given."""

    max_tokens: int
    stop: tuple[str, ...]
    overflow: Overflow

    @property
    def limits(self) -> dict[str, Any]:
        """As ``Generation`` and ``Task`` take them."""
        return {"max_new_tokens": self.max_tokens, "stop": self.stop, "rolls": self.overflow == "shift"}


def asked(max_tokens: int, stop: tuple[str, ...], overflow: Overflow) -> Length:
    """The options, checked."""
    if "" in stop:
        raise usage_error("--stop is empty", "give the text before which to end")
    if any(0xD800 <= ord(char) <= 0xDFFF for text in stop for char in text):  # bytes that could not be decoded
        raise usage_error("--stop is not valid Unicode", "UTF-8 is wanted")
    return Length(max_tokens, stop, overflow)


def fit(loaded: LoadedModel, ids: list[int], overflow: Overflow) -> list[int]:
    """The prompt, or what is left of it where it was too long, which is then said. Errors: it is to be one."""
    from llmcli.generation.overflow import fitted
    from llmcli.render.terminal import note

    limit = loaded.model.config.max_position_embeddings
    front = int(ids[:1] == loaded.tokenizer.encode("")[:1])  # a BOS token stays
    left = fitted(ids, limit, overflow, front=front)
    if len(left) < len(ids):
        gone = len(ids) - len(left)
        note(f"the prompt is {len(ids)} tokens long, the context {limit}: its first {gone} left out", sys.stderr)
    return left


overflow_option = click.option(
    "--context-overflow",
    "overflow",
    type=Choice(OVERFLOWS),
    default="error",
    show_default=True,
    metavar="WAY",
    help="For too long a prompt: error, or cut its beginning (truncate-start). shift: a full context also goes on "
    "without its older half.",
)


def length_options(least: int) -> Decorator:
    """The options of a command that writes ``least`` tokens or more."""
    return bundle(
        "length",
        asked,
        click.option(
            "--max-tokens",
            "--max-new-tokens",
            "-n",
            type=click.IntRange(min=least),
            default=512,
            show_default=True,
            help="Write at most so many tokens.",
        ),
        click.option(
            "--stop", multiple=True, type=Line(), metavar="TEXT", help="End before this text; may be repeated."
        ),
        overflow_option,
        title="Length",
    )
