"""Logits to one token: a chain of filters, then one draw that can be replayed."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmcli.generation.distribution import Softmax, argmax, draw, probabilities, rank
from llmcli.generation.filters import Filter, MinNewTokens, Temperature, Truncation
from llmcli.generation.grammar import Ending, GrammarFilter

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Stage:
    """The output of one filter: logits [V] in fp32."""

    name: str
    value: float | None
    logits: Tensor


@dataclass(frozen=True)
class Choice:
    """One chosen token. ``u`` is the number that it was drawn with, or None without a draw (temperature 0)."""

    id: int
    prob: float  # the model's own, over the whole vocabulary
    final_prob: float  # after the filters
    rank: int  # among the model's own probabilities; 0 is the most probable
    u: float | None
    softmax: Softmax = field(repr=False, compare=False)  # of the logits


class Sampler:
    """A chain of filters and a seeded random generator that yields one number u per step.

    The same seed gives the same draws on every device.
    """

    def __init__(self, filters: Sequence[Filter], seed: int) -> None:
        self.filters = tuple(filters)
        self.seed = seed
        self._random = random.Random(seed)
        self._upcoming: deque[float] = deque()  # numbers that ``upcoming`` has drawn ahead of their steps

    def copy(self, seed: int, start: int) -> Sampler:
        """A sampler with the same filters and its own seed, for a text that begins after ``start`` prompt tokens."""
        return Sampler([f.copy(start) if isinstance(f, GrammarFilter) else f for f in self.filters], seed)

    def begin(self, prompt: Sequence[int], stop_ids: Iterable[int]) -> None:
        """Prepare for the text that begins after ``prompt`` and ends with one of ``stop_ids``."""
        self.filters = tuple(f.after(prompt, stop_ids) if isinstance(f, MinNewTokens) else f for f in self.filters)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always chosen (temperature 0)."""
        return any(isinstance(filter, Temperature) and filter.value == 0 for filter in self.filters)

    @property
    def grammar(self) -> GrammarFilter | None:
        """The filter of the grammar, if the output is constrained."""
        return next((filter for filter in self.filters if isinstance(filter, GrammarFilter)), None)

    def ending(self, ids: Sequence[int], token: int) -> Ending | None:
        """Whether the grammar lets the text end after ``ids`` and ``token``; None without a grammar."""
        return None if self.grammar is None else self.grammar.ending([*ids, token])

    def stages(self, logits: Tensor, ids: Sequence[int] = ()) -> list[Stage]:
        """The output of every filter, in order. ``ids`` are all earlier tokens, prompt included."""
        stages = []
        for filter in self.filters:
            logits = filter(logits, ids)
            stages.append(Stage(filter.name, filter.value, logits))
        return stages

    def choose(self, logits: Tensor, ids: Sequence[int] = ()) -> Choice:
        """Choose the token that follows ``ids``, given its logits [V]. Raises LlmcliError if one is not finite."""
        softmax = Softmax(logits)
        if self.greedy:  # the filters leave one token
            id, final_prob, u = self._greedy_choice(logits.float(), ids), 1.0, None
        else:
            final = self.final(logits, ids)
            u = self._upcoming.popleft() if self._upcoming else self._random.random()
            id = draw(final, u)
            final_prob = float(final[id])
        return Choice(id, softmax.prob(id), final_prob, rank(logits, id), u, softmax)

    def _greedy_choice(self, logits: Tensor, ids: Sequence[int]) -> int:
        """The token that the filters leave, without running those that cut nothing from a single token."""
        last = max(n for n, filter in enumerate(self.filters) if not isinstance(filter, Truncation))
        for filter in self.filters[:last]:
            logits = filter(logits, ids)
        if not isinstance(self.filters[last], Temperature):
            logits = self.filters[last](logits, ids)
        return argmax(logits)

    def final(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        """The probabilities [V] after all filters, from which the token is drawn."""
        stages = self.stages(logits.float(), ids)
        return probabilities(stages[-1].logits if stages else logits)

    def upcoming(self, count: int) -> Sequence[float | None]:
        """The ``u`` of the next ``count`` choices, without using them up; None where nothing is drawn."""
        if self.greedy:
            return [None] * count
        while len(self._upcoming) < count:
            self._upcoming.append(self._random.random())
        return list(self._upcoming)[:count]
