"""Guessing tokens ahead, so that one pass of the model can check several: the text stays what it would have been.

The model reads the guesses behind the last token, and at every place the sampler chooses as it always does, with the
u of that place. Guesses that equal its choices are kept, those behind the first that does not are forgotten. So the
output has not only the same distribution (Leviathan et al. 2023): with one seed it is the same text.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.generate.sampling import Sampler, pick
from llmcli.generate.steps import next_logits
from llmcli.model.transformer import Transformer


class PromptLookup:
    """Guesses that the text repeats itself: what followed the last tokens when they stood there before (Saxena 2023)."""

    LONGEST = 3  # tokens that must have stood there before; fewer are tried where these have not

    def __init__(self) -> None:
        self._seen: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}  # n-gram -> where what followed it last begins

    def guess(self, ids: Sequence[int], count: int, sampler: Sampler) -> list[int]:
        self._learn(ids)
        for length in range(min(self.LONGEST, len(ids)), 0, -1):
            place = self._places.get(tuple(ids[-length:]))
            if place is not None:
                return list(ids[place : place + count])
        return []

    def _learn(self, ids: Sequence[int]) -> None:
        """Note the n-grams that are new and have something behind them."""
        if list(ids[: len(self._seen)]) != self._seen:
            self._seen, self._places = [], {}
        for place in range(max(len(self._seen), 1), len(ids)):
            for length in range(1, min(self.LONGEST, place) + 1):
                self._places[tuple(ids[place - length : place])] = place
        self._seen = list(ids)


class DraftModel:
    """Guesses by a smaller model of the same vocabulary, drawn by the u that the sampler is going to use."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self._cache = model.new_cache()
        self._read: list[int] = []

    def guess(self, ids: Sequence[int], count: int, sampler: Sampler) -> list[int]:
        text = list(ids)
        room = self.model.config.max_position_embeddings - len(text)
        for u in sampler.ahead(max(min(count, room), 0)):
            text.append(pick(sampler.final(self._next(text)), u))
        return text[len(ids) :]

    def _next(self, text: list[int]) -> Tensor:
        """The logits behind ``text``, of which the cache holds a beginning, perhaps with a wrong guess at its end."""
        same = 0
        while same < min(len(self._read), len(text) - 1) and self._read[same] == text[same]:
            same += 1
        self._cache.truncate(same)
        if self.model.stale(self._cache, len(text) - same):
            self._cache.truncate(0)
        logits = next_logits(self.model, text[self._cache.length :], self._cache)
        self._read = list(text)
        return logits


def check_vocabularies(model: Transformer, draft: Transformer) -> None:
    """Raise unless a guess of ``draft`` means the same token to ``model``, as far as sizes tell."""
    if model.config.vocab_size != draft.config.vocab_size:
        raise LlmcliError(
            f"the draft model knows {draft.config.vocab_size} tokens, the model {model.config.vocab_size}",
            "both must have the same tokenizer",
        )
