"""``--think``, ``--no-think`` and ``--think-budget``: how models think that can."""

from __future__ import annotations

from dataclasses import dataclass

import click

from llmcli import text
from llmcli.commands.options.common import bundle
from llmcli.errors import usage_error


@dataclass(frozen=True)
class Think:
    """The values of the options: whether the model thinks (None: its own choice), and the most tokens of thoughts."""

    on: bool | None
    budget: int | None

    @property
    def given(self) -> bool:
        return self.on is not None or self.budget is not None

    def check(self, model: str, thinking: text.Thinking) -> None:
        """Raise LlmcliError if there is a budget, but the model has no tags for thoughts."""
        if self.budget is not None and thinking.tags is None:
            raise usage_error(f"{model} has no tags for thoughts", kind="no-thoughts")

    def switched(self, template: text.ChatTemplate, thinking: text.Thinking) -> text.ChatTemplate:
        """Return the template with thinking on or off. Raises LlmcliError if it has no switch."""
        return template if self.on is None else text.switched(template, thinking, on=self.on)

    def __str__(self) -> str:
        state = {None: "the model's choice", True: "on", False: "off"}[self.on]
        return state if self.budget is None or self.on is False else f"{state}, at most {self.budget} tokens"


NO_CHOICE = Think(None, None)


def parse_think(think: bool | None, think_budget: int | None) -> Think:
    """Check that the options can be combined."""
    if think is False and think_budget is not None:
        raise usage_error("--no-think and --think-budget cannot be combined", "give one of them")
    return Think(think, think_budget)


def parse_think_argument(argument: str, now: Think) -> Think:
    """Parse what follows /think in a chat: on, off or a number of tokens; nothing turns thinking off if it is on.

    Raises LlmcliError for anything else.
    """
    if argument in ("", "on", "off"):
        return Think(now.on is False if not argument else argument == "on", now.budget)
    if argument.isascii() and argument.isdigit() and len(argument) < 10:
        return Think(True if now.on is False else now.on, int(argument))
    raise usage_error(f"/think takes on, off or a number of tokens, not {argument!r}", "as in /think 200")


thinking_options = bundle(
    "think",
    parse_think,
    click.option(
        "--think/--no-think",
        default=None,
        help="Turn thinking before the answer on or off, if the chat template can.  [default: the template's]",
    ),
    click.option(
        "--think-budget",
        type=click.IntRange(min=0),
        help="End thoughts after N tokens, so that the answer follows.",
    ),
    title="Chat",
)
