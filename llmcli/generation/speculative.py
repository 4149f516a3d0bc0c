"""Guessing tokens ahead, so that one pass of the model can check several: the text stays what it would have been.

The model reads the guesses behind the last token, and at every place the sampler chooses as it always does, with the
u of that place. Guesses that equal its choices are kept, those behind the first that does not are forgotten. So the
output has not only the same distribution (Leviathan et al. 2023): with one seed it is the same text, as far as the
kernels for many positions round like those for one (in bfloat16, near ties can fall otherwise).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.generation.distribution import pick
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import forget_stale, next_logits, shared
from llmcli.model.transformer import Transformer


class PromptLookup:
    """Guesses that the text repeats itself: what followed its last tokens before (Saxena 2023).

    A pass that checks a guess takes about two steps' time. So a guess is as long as it may be, and after
    one of which nothing was right none is made for a while.
    """

    # How many tokens must have stood there before: the most that have. One alone says too little.
    LENGTHS = (3, 2)
    LONGEST_PAUSE = 16  # passes without a guess

    def __init__(self) -> None:
        self.guessed = self.kept = 0
        self._before = (0, 0)  # both, when the last guess was made
        self._pause = self._paused = 0
        self._seen: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}  # n-gram -> where what followed it last begins

    def guess(self, ids: Sequence[int], count: int, sampler: Sampler) -> list[int]:
        self._learn(ids)
        if self.guessed > self._before[0]:
            wrong = self.kept == self._before[1]
            self._pause = min(2 * self._pause + 1, self.LONGEST_PAUSE) if wrong else 0
            self._paused, self._before = 0, (self.guessed, self.kept)
        if self._paused < self._pause:
            self._paused += 1
            return []
        for length in self.LENGTHS:
            place = self._places.get(tuple(ids[-length:]))
            if place is not None:
                return self._repeated(ids, place, count)
        return []

    @staticmethod
    def _repeated(ids: Sequence[int], place: int, count: int) -> list[int]:
        """What stands from ``place`` on; where that ends, it goes on with itself."""
        period = len(ids) - place
        return [ids[place + number % period] for number in range(count)]

    def _learn(self, ids: Sequence[int]) -> None:
        """Note the n-grams that are new and have something behind them."""
        if list(ids[: len(self._seen)]) != self._seen:
            self._seen, self._places = [], {}
        for place in range(max(len(self._seen), 1), len(ids)):
            for length in self.LENGTHS:
                if length <= place:
                    self._places[tuple(ids[place - length : place])] = place
        self._seen = list(ids)


class DraftModel:
    """Guesses by a smaller model of the same vocabulary, drawn by the u that the sampler is going to use."""

    def __init__(self, model: Transformer) -> None:
        self.guessed = self.kept = 0
        self.model = model
        self._cache = model.new_cache()
        self._read: list[int] = []

    def guess(self, ids: Sequence[int], count: int, sampler: Sampler) -> list[int]:
        text = list(ids)
        room = self.model.config.max_position_embeddings - len(text)
        for u in sampler.upcoming(max(min(count, room), 0)):
            guess = pick(sampler.final(self._next(text), text), u)
            ending = sampler.ending(text, guess)
            text.append(guess)
            if ending == "must":
                break
        return text[len(ids) :]

    def _next(self, text: list[int]) -> Tensor:
        """The logits behind ``text``, of which the cache holds a beginning, perhaps with a wrong guess at its end."""
        self._cache.truncate(shared(self._read, text[:-1]))
        forget_stale(self.model, len(text), self._cache)
        logits = next_logits(self.model, text[self._cache.length :], self._cache)
        self._read = list(text)
        return logits


def check_vocabularies(loaded: LoadedModel, draft: LoadedModel) -> None:
    """Raise unless a guess of ``draft`` means the same token to the model."""
    sizes = [(model.tokenizer.size, model.model.config.vocab_size) for model in (draft, loaded)]
    sample = "The quick brown fox: 12 naïve 🙂s, 3.5% \n\tjumps()"
    if sizes[0] != sizes[1] or draft.tokenizer.encode(sample) != loaded.tokenizer.encode(sample):
        raise LlmcliError(f"{draft.name} has another tokenizer than {loaded.name}", "a draft model must share it")
