"""A budget for thoughts: a filter that ends them after a number of tokens.

From then on it allows one token at a time, those of the closing tag; then the model answers. Every step draws its
number as usual, so that the same seed gives the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmcli.errors import usage_error
from llmcli.generation.filters.base import CUT
from llmcli.text.stream import TextStream
from llmcli.text.thinking import SplitReply, State, Thinking
from llmcli.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor


class ThinkBudget:
    """Allow at most ``value`` tokens of thoughts in the text that begins after ``start`` prompt tokens.

    A pure function of the ids, like the grammar's filter: it remembers what it has read.
    """

    name = "think-budget"

    def __init__(self, tokenizer: Tokenizer, thinking: Thinking, budget: int, state: State, start: int) -> None:
        assert thinking.tags is not None
        self.value = float(budget)
        self._tokenizer, self._thinking, self._state, self._start = tokenizer, thinking, state, start
        self._ending = tokenizer.encode(thinking.tags.ending, parse_special=True, add_special=False)
        self._begin()

    def __repr__(self) -> str:
        return f"ThinkBudget({self.value:g})"

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        self._follow(list(ids[self._start :]))
        position = None if self._forced is None else len(self._read) - self._forced
        if position is None or position >= len(self._ending):
            return logits
        only = logits.new_full(logits.shape, CUT)
        only[self._ending[position]] = 0.0
        return only

    def _begin(self) -> None:
        self._read: list[int] = []
        self._reply = SplitReply(self._thinking, self._state)
        self._stream = TextStream(self._tokenizer, shown=self._thinking.tag_ids(self._tokenizer))
        self._forced: int | None = None  # the index of the first token of the ending

    def _follow(self, text: list[int]) -> None:
        """Read the new tokens of the text; one that differs is read from the beginning."""
        if text[: len(self._read)] != self._read:
            self._begin()
        self._note_end()
        for id in text[len(self._read) :]:
            self._reply.add(self._stream.feed(id), ended=False)
            self._read.append(id)
            self._note_end()

    def _note_end(self) -> None:
        """Begin the ending, if the budget is spent."""
        spent = self._reply.state == "thoughts" and self._reply.thought_tokens >= self.value
        if self._forced is None and spent:
            self._forced = len(self._read)


def think_budget_of(tokenizer: Tokenizer, thinking: Thinking, budget: int, state: State, start: int) -> ThinkBudget:
    """Return the filter for a budget. Raises LlmcliError if the model has no tags for thoughts."""
    if thinking.tags is None:
        raise usage_error(f"{tokenizer.name} has no tags for thoughts, so they cannot be counted", kind="no-thoughts")
    return ThinkBudget(tokenizer, thinking, budget, state, start)
