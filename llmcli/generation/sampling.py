"""Logits -> one token: a chain of filters, then one draw that can be replayed."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from llmcli.generation.distribution import pick, probabilities
from llmcli.generation.filters import Filter, Temperature
from llmcli.generation.grammar import Ending, GrammarFilter


@dataclass(frozen=True)
class Stage:
    """What one filter did: the logits that left it, fp32 [V]."""

    name: str
    value: float | None
    logits: Tensor


@dataclass(frozen=True)
class Choice:
    """One token and how it came to be chosen. ``u`` is None where nothing was drawn (temperature 0)."""

    id: int
    prob: float  # the model's own, over the whole vocabulary
    final_prob: float  # after the filters
    rank: int  # among the model's own probabilities, 0 the best
    u: float | None


class Sampler:
    """Filters in order, and a seeded source of one number u a step: the same seed, the same draws on any device."""

    def __init__(self, filters: Sequence[Filter], seed: int) -> None:
        self.filters = tuple(filters)
        self.seed = seed
        self._random = random.Random(seed)
        self._coming: deque[float] = deque()  # drawn already, because somebody asked what they will be

    def another(self, seed: int, start: int) -> Sampler:
        """One with the same filters, for another text that begins behind ``start`` tokens of prompt."""
        return Sampler([f.another(start) if isinstance(f, GrammarFilter) else f for f in self.filters], seed)

    @property
    def greedy(self) -> bool:
        return any(isinstance(filter, Temperature) and filter.value == 0 for filter in self.filters)

    @property
    def grammar(self) -> GrammarFilter | None:
        """The filter that knows where a text may end, if there is one."""
        return next((filter for filter in self.filters if isinstance(filter, GrammarFilter)), None)

    def ending(self, ids: Sequence[int], token: int) -> Ending | None:
        """Whether a grammar lets the text end behind ``ids`` and ``token``; None without one."""
        return None if self.grammar is None else self.grammar.ending([*ids, token])

    def stages(self, logits: Tensor, ids: Sequence[int] = ()) -> list[Stage]:
        """Every filter's outcome, in order; ``ids`` are the tokens before, prompt and all."""
        stages = []
        for filter in self.filters:
            logits = filter(logits, ids)
            stages.append(Stage(filter.name, filter.value, logits))
        return stages

    def choose(self, logits: Tensor, ids: Sequence[int] = ()) -> Choice:
        """Filter, draw and describe what follows ``ids``. Errors: logits that are no numbers."""
        probs = probabilities(logits)
        final = self.final(logits, ids) if self.filters else probs
        u = None
        if not self.greedy:
            u = self._coming.popleft() if self._coming else self._random.random()
        id = pick(final, u)
        prob = probs[id]
        rank = int((probs > prob).sum()) + int((probs[:id] == prob).sum())
        return Choice(id, float(prob), float(final[id]), rank, u)

    def final(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        """The probabilities that are drawn from: those of the logits that all filters left."""
        stages = self.stages(logits.float(), ids)
        return probabilities(stages[-1].logits if stages else logits)

    def ahead(self, count: int) -> Sequence[float | None]:
        """What ``u`` will be in the next ``count`` choices; they come all the same."""
        if self.greedy:
            return [None] * count
        while len(self._coming) < count:
            self._coming.append(self._random.random())
        return list(self._coming)[:count]
