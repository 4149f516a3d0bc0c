"""Thoughts before a reply's answer: the options of a request that turn them on, off, or limit them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.generation.sampling import Sampler
from llmcli.generation.thinking import think_budget_of
from llmcli.serve.body import Body
from llmcli.serve.errors import bad_request
from llmcli.text.chat_template import ChatTemplate
from llmcli.text.thinking import EFFORT, NO_EFFORT, SWITCHES, SplitReply, State, Thinking
from llmcli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Thoughts:
    """How a text thinks that begins in ``state``, and the most tokens of its thoughts. By default, it does not."""

    thinking: Thinking = field(default_factory=Thinking)
    state: State = "answer"
    budget: int | None = None

    def split(self) -> SplitReply:
        """What splits the text into thoughts and answer."""
        return SplitReply(self.thinking, self.state, self.budget)

    def limited(self, sampler: Sampler, tokenizer: Tokenizer, start: int) -> Sampler:
        """The sampler with the budget, for a text that begins after ``start`` prompt tokens."""
        if self.budget is None:
            return sampler
        budget = think_budget_of(tokenizer, self.thinking, self.budget, self.state, start)
        return Sampler([budget, *sampler.filters], sampler.seed)


@contextmanager
def template_errors(template: ChatTemplate, param: str) -> Iterator[None]:
    """Turn the errors of a template into answers that name the option ``param``, and not a file of the server."""
    try:
        yield
    except LlmcliError as error:
        raise bad_request(str(error).removeprefix(f"{template.path}: "), param, error.kind or None) from None


def template_values(body: Body, template: ChatTemplate, thinking: Thinking) -> dict[str, Any]:
    """The values of the template's variables that a request gives, and the one that switches thinking as it asks."""
    given = body.take("chat_template_kwargs", {})
    if not isinstance(given, dict):
        raise bad_request("chat_template_kwargs must be an object", "chat_template_kwargs")
    effort = body.text(EFFORT)
    values = {name: value for name, value in given.items() if name not in SWITCHES or name in template.names}
    on = next((given[name] for name in SWITCHES if name in given), None if effort is None else effort != NO_EFFORT)
    switch = thinking.on if on else thinking.off
    if effort is not None and EFFORT in template.names:
        values.setdefault(EFFORT, effort)
    elif effort is not None and switch is None and (on or thinking.tags is not None):
        body.warn(f"ignored: {EFFORT} (the chat template has no switch for thinking)")
    if on is not None and switch is not None:
        values.setdefault(*switch)
    return values


def read_thoughts(body: Body, thinking: Thinking, prompt: str, *, free: bool) -> Thoughts:
    """How the reply to ``prompt`` thinks. A reply that is not ``free``, but follows a grammar, is an answer."""
    budget = body.integer("think_budget", None)
    if budget is not None and thinking.tags is None:
        raise bad_request("think_budget: this model has no tags for thoughts", "think_budget")
    if budget is not None and not free:
        raise bad_request(
            "think_budget cannot be combined with a grammar: such a reply has no thoughts", "think_budget"
        )
    return Thoughts(thinking, thinking.state_after(prompt), budget) if free else Thoughts()
