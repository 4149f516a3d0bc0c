"""Speculative decoding: cheap proposals of several tokens, which the model then checks in one forward pass.

The model reads the proposed tokens after the last token of the text. At every position the sampler chooses as usual,
with the ``u`` of that step. Proposed tokens that equal its choices are accepted; those after the first that differs are
discarded. So the output not only has the same distribution (Leviathan et al. 2023); with the same seed it is the same
text, provided that the kernels for a few positions round like those for one, as the compiled engine's do. (On a GPU,
near ties can differ.)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.generation.distribution import pick
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.reading import clear_if_stale, common_prefix, next_logits
from llmcli.generation.sampling import Sampler
from llmcli.model.transformer import Transformer


class PromptLookup:
    """Propose that the text repeats itself: the tokens that followed its last n-gram before (Saxena 2023).

    A pass that checks a proposal takes about as long as two steps. Proposals are therefore as long as possible, and
    after one that was rejected entirely there is a pause of some passes.
    """

    NGRAMS = (3, 2)  # lengths to look for, the longest first; a single token predicts too little
    MAX_PAUSE = 16  # passes without a proposal

    def __init__(self) -> None:
        self.proposed = self.accepted = 0
        self._before = (0, 0)  # both counts at the time of the last proposal
        self._pause = self._paused = 0
        self._read: list[int] = []
        self._positions: dict[tuple[int, ...], int] = {}  # n-gram -> position after its last occurrence

    def propose(self, ids: Sequence[int], count: int, sampler: Sampler) -> list[int]:
        self._index(ids)
        if self.proposed > self._before[0]:
            rejected = self.accepted == self._before[1]
            self._pause = min(2 * self._pause + 1, self.MAX_PAUSE) if rejected else 0
            self._paused, self._before = 0, (self.proposed, self.accepted)
        if self._paused < self._pause:
            self._paused += 1
            return []
        for length in self.NGRAMS:
            position = self._positions.get(tuple(ids[-length:]))
            if position is not None:
                period = len(ids) - position  # beyond the end of the text, it repeats this period
                return [ids[position + number % period] for number in range(count)]
        return []

    def _index(self, ids: Sequence[int]) -> None:
        """Record the new n-grams that are followed by a token."""
        if list(ids[: len(self._read)]) != self._read:
            self._read, self._positions = [], {}
        for position in range(max(len(self._read), 1), len(ids)):
            for length in self.NGRAMS:
                if length <= position:
                    self._positions[tuple(ids[position - length : position])] = position
        self._read = list(ids)


class DraftModel:
    """Propose what a smaller model with the same vocabulary would choose, with the sampler's upcoming numbers u."""

    def __init__(self, model: Transformer) -> None:
        self.proposed = self.accepted = 0
        self.model = model
        self._cache = model.new_cache()
        self._read: list[int] = []  # the cache holds a prefix of these

    def propose(self, ids: Sequence[int], count: int, sampler: Sampler) -> list[int]:
        text = list(ids)
        room = self.model.config.max_position_embeddings - len(text)
        for u in sampler.upcoming(max(min(count, room), 0)):
            token = pick(sampler.final(self._next(text), text, u), u)
            ending = sampler.ending(text, token)
            text.append(token)
            if ending == "must":
                break
        return text[len(ids) :]

    def _next(self, text: list[int]) -> Tensor:
        """The logits after ``text`` [V]. The cache may end with a proposal that was rejected, which is dropped."""
        self._cache.truncate(common_prefix(self._read, text[:-1]))
        clear_if_stale(self.model, len(text), self._cache)
        logits = next_logits(self.model, text[self._cache.length :], self._cache)
        self._read = list(text)
        return logits


def check_vocabularies(loaded: LoadedModel, draft: LoadedModel) -> None:
    """Raise LlmcliError unless the same ids mean the same tokens to the model and to its draft model."""
    sizes = [(model.tokenizer.size, model.model.config.vocab_size) for model in (draft, loaded)]
    sample = "The quick brown fox: 12 naïve 🙂s, 3.5% \n\tjumps()"
    if sizes[0] != sizes[1] or draft.tokenizer.encode(sample) != loaded.tokenizer.encode(sample):
        raise LlmcliError(
            f"the tokenizer of {draft.name} differs from that of {loaded.name}",
            "choose a draft model with the same tokenizer",
        )
