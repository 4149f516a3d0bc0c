"""The options for the length of a text and its stop strings, and ``--context-overflow``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from typing import Any

import click

from llmcli import generation, render
from llmcli.commands.options.common import Choice, Line, bundle
from llmcli.commands.shell.help import Decorator
from llmcli.errors import usage_error
from llmcli.generation.generation_config import MAX_NEW_TOKENS, Defaults
from llmcli.text.surrogates import is_unicode

OVERFLOWS = ("error", "truncate-start", "shift")


@dataclass(frozen=True)
class Length:
    """The options of a command line that limit the text, and the limits of the model that it was opened for, if any."""

    given_tokens: int | None
    given_stop: tuple[str, ...]
    overflow: generation.Overflow
    own: generation.Defaults | None = None

    def of(self, loaded: generation.LoadedModel) -> Length:
        """The same options, in which the model's own limits replace those that were not given."""
        return replace(self, own=loaded.defaults)

    @property
    def max_tokens(self) -> int:
        return (self.own or Defaults((), {}, {})).token_limit(self.given_tokens)

    @property
    def stop(self) -> tuple[str, ...]:
        return self.given_stop or (() if self.own is None else self.own.stop)

    @property
    def adopted(self) -> dict[str, str]:
        """The model's own limits that apply, by option, as text."""
        limits: dict[str, str] = {}
        if self.own is not None and self.own.max_new_tokens is not None and self.given_tokens is None:
            limits["max-tokens"] = str(self.own.max_new_tokens)
        if self.own is not None and self.own.stop and not self.given_stop:
            limits["stop"] = " ".join(map(json.dumps, self.own.stop))
        return limits

    @property
    def limits(self) -> dict[str, Any]:
        """The keyword arguments of ``Generation`` and ``Samples`` for these options."""
        return {"max_new_tokens": self.max_tokens, "stop": self.stop, "rolls": self.overflow == "shift"}


def parse_length(max_tokens: int | None, stop: tuple[str, ...], overflow: generation.Overflow) -> Length:
    """Check the values of the options."""
    if "" in stop:
        raise usage_error("--stop must not be empty", "give the text to stop at")
    if not all(map(is_unicode, stop)):
        raise usage_error("--stop is not valid Unicode", "use UTF-8")
    return Length(max_tokens, stop, overflow)


def fit(
    loaded: generation.LoadedModel, text: str, overflow: generation.Overflow, *, parse_special: bool = False
) -> list[int]:
    """Return the ids of the prompt ``text``, cut to the context as ``overflow`` says; a note reports the cut.

    Raises LlmcliError if the prompt is too long and ``overflow`` is "error".
    """
    ids = generation.encode_prompt(loaded, text, overflow, parse_special=parse_special)
    fitted = generation.fit_prompt(loaded, ids, overflow)
    if len(fitted) < len(ids):
        limit, cut = loaded.model.config.max_position_embeddings, len(ids) - len(fitted)
        render.note(
            f"the prompt has {len(ids)} tokens, but the model's context holds {limit}: {cut} were dropped", sys.stderr
        )
    return fitted


overflow_option = click.option(
    "--context-overflow",
    "overflow",
    type=Choice(OVERFLOWS),
    default="error",
    show_default=True,
    metavar="WAY",
    help="If the prompt is too long: error, or truncate-start to cut its beginning. shift also drops the older "
    "half of a full context.",
)


def length_options(least: int) -> Decorator:
    """The options of a command that generates at least ``least`` tokens, as ``length``."""
    return bundle(
        "length",
        parse_length,
        click.option(
            "--max-tokens",
            "--max-new-tokens",
            "-n",
            type=click.IntRange(min=least),
            help=f"Generate at most N tokens.  [default: the model's, else {MAX_NEW_TOKENS}]",
        ),
        click.option("--stop", multiple=True, type=Line(), metavar="TEXT", help="Stop before this text. Repeatable."),
        overflow_option,
        title="Length",
    )
