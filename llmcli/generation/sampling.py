"""Logits to one token: a chain of filters, then one draw that can be replayed."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llmcli.generation.distribution import Softmax, argmax, draw, probabilities, rank
from llmcli.generation.filters import Filter, MinNewTokens, Mirostat, Temperature, Truncation, Xtc
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
    """One chosen token. ``u`` is the number that it was drawn with, or None without a draw (temperature 0).

    ``mu`` is the state of Mirostat before this step, if that is one of the filters.
    """

    id: int
    prob: float  # the model's own, over the whole vocabulary
    final_prob: float  # after the filters
    rank: int  # among the model's own probabilities; 0 is the most probable
    u: float | None
    softmax: Softmax = field(repr=False, compare=False)  # of the logits
    mu: float | None = None


class Sampler:
    """A chain of filters and a seeded random generator that yields one number u per step.

    The same seed gives the same draws on every device.
    """

    def __init__(self, filters: Sequence[Filter], seed: int) -> None:
        self.filters = tuple(filters)
        self.seed = seed
        self._random = random.Random(seed)
        self._final: Tensor | None = None  # the probabilities of the latest choice, if a filter depends on them
        self._upcoming: deque[float] = deque()  # numbers that ``upcoming`` has drawn ahead of their steps

    def copy(self, seed: int, start: int) -> Sampler:
        """A sampler with the same filters and its own seed, for a text that begins after ``start`` prompt tokens."""
        return Sampler([f.copy(start) if isinstance(f, GrammarFilter) else f for f in self.filters], seed)

    def begin(self, prompt: Sequence[int], stop_ids: Iterable[int]) -> None:
        """Prepare for the text that begins after ``prompt`` and ends with one of ``stop_ids``."""
        self._final = None
        self.filters = tuple(
            f.after(prompt, stop_ids) if isinstance(f, MinNewTokens) else f.at_start() if isinstance(f, Mirostat) else f
            for f in self.filters
        )

    def accept(self, token: int) -> None:
        """Prepare for the choice of the token after ``token``, which usually is the latest choice."""
        prob = 0.0 if self._final is None else float(self._final[token])
        if prob:
            self.filters = tuple(f.after_token(prob) if isinstance(f, Mirostat) else f for f in self.filters)

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

    def stages(self, logits: Tensor, ids: Sequence[int] = (), u: float | None = None) -> list[Stage]:
        """The output of every filter, in order. ``ids`` are all earlier tokens, prompt included.

        Filters that depend on the draw act as in a step whose token is drawn with ``u``.
        """
        stages = []
        for filter in self._at(u):
            logits = filter(logits, ids)
            stages.append(Stage(filter.name, filter.value, logits))
        return stages

    def choose(self, logits: Tensor, ids: Sequence[int] = ()) -> Choice:
        """Choose the token that follows ``ids``, given its logits [V]. Raises LlmcliError if one is not finite."""
        softmax = Softmax(logits)
        u: float | None = None
        if self.greedy:  # the filters leave one token
            id, final_prob = self._greedy_choice(logits.float(), ids), 1.0
        else:
            u = self._upcoming.popleft() if self._upcoming else self._random.random()
            final = self.final(logits, ids, u)
            id = draw(final, u)
            final_prob = float(final[id])
            self._final = final if any(isinstance(filter, Mirostat) for filter in self.filters) else None
        mu = next((filter.limit for filter in self.filters if isinstance(filter, Mirostat)), None)
        return Choice(id, softmax.prob(id), final_prob, rank(logits, id), u, softmax, mu)

    def as_of(self, choice: Choice) -> Sampler:
        """A sampler whose filters are in the state in which they were before ``choice``."""
        filters = [replace(f, mu=choice.mu) if isinstance(f, Mirostat) else f for f in self._at(choice.u)]
        return Sampler(filters, self.seed)

    def _at(self, u: float | None) -> tuple[Filter, ...]:
        """The filters for a step whose token is drawn with ``u``."""
        if u is None or not any(isinstance(filter, Xtc) for filter in self.filters):
            return self.filters
        return tuple(f.at(u) if isinstance(f, Xtc) else f for f in self.filters)

    def _greedy_choice(self, logits: Tensor, ids: Sequence[int]) -> int:
        """The token that the filters leave, without running those that cut nothing from a single token."""
        last = max(n for n, filter in enumerate(self.filters) if not isinstance(filter, Truncation))
        for filter in self.filters[:last]:
            logits = filter(logits, ids)
        if not isinstance(self.filters[last], Temperature):
            logits = self.filters[last](logits, ids)
        return argmax(logits)

    def final(self, logits: Tensor, ids: Sequence[int] = (), u: float | None = None) -> Tensor:
        """The probabilities [V] after all filters, from which the token is drawn, with ``u``."""
        stages = self.stages(logits.float(), ids, u)
        return probabilities(stages[-1].logits if stages else logits)

    def skip(self, count: int) -> None:
        """Use up the ``u`` of the next ``count`` choices."""
        if not self.greedy:
            self.upcoming(count)
            for _ in range(count):
                self._upcoming.popleft()

    def upcoming(self, count: int) -> Sequence[float | None]:
        """The ``u`` of the next ``count`` choices, without using them up; None where nothing is drawn."""
        if self.greedy:
            return [None] * count
        while len(self._upcoming) < count:
            self._upcoming.append(self._random.random())
        return list(self._upcoming)[:count]
