"""The keys and values of prompts that were read before, so that a prompt with the same beginning reads only the rest.

Only whole chunks are kept (``steps.chunk_of``): what the model computes for those does not depend on what follows or on
what was kept, so a text has the same tokens with and without them.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmcli.generation.steps import chunk_of, common_prefix
from llmcli.model.cache import KVCache
from llmcli.model.transformer import Transformer

MOST_TRIED = 4  # caches with a common beginning; each is copied


class Prefixes:
    """Caches of prompts, at most ``limit`` bytes of them; the one that was used least recently goes first."""

    def __init__(self, model: Transformer, limit: int) -> None:
        self.limit, self.chunk = limit, chunk_of(model)
        self.model = model
        self._held: dict[tuple[int, ...], KVCache] = {}  # by the ids; the one used last is the last

    @property
    def nbytes(self) -> int:
        """The bytes that the caches take."""
        return sum(cache.nbytes for cache in self._held.values())

    def worth_keeping(self, ids: Sequence[int]) -> int:
        """How many of the first tokens of a prompt are kept: whole chunks, without the last token."""
        return (len(ids) - 1) // self.chunk * self.chunk

    def find(self, ids: Sequence[int], planned: int) -> KVCache:
        """A cache of its own for a prompt, with as much of its beginning as is held.

        ``planned`` is the length that its angles are computed for.
        """
        common = sorted(((common_prefix(held, ids), held) for held in self._held), reverse=True)
        for length, held in common[:MOST_TRIED]:
            length = min(length, len(ids) - 1) // self.chunk * self.chunk
            if not length:
                break
            cache = self._held[held].copy()
            cache.truncate(length)  # to less, or to nothing, where a window or a state cannot go back
            cache.planned = planned
            whole = cache.length > 0 and cache.length % self.chunk == 0
            if whole and not self.model.stale(cache, len(ids) - cache.length):
                self._held[held] = self._held.pop(held)  # used last
                return cache
        cache = self.model.new_cache()
        cache.planned = planned
        return cache

    def keep(self, ids: Sequence[int], cache: KVCache) -> None:
        """Keep a copy of a cache that holds exactly ``ids``."""
        key = tuple(ids)
        assert cache.length == len(key)
        if not self.limit or not key:
            return
        if not cache.recurrent and all(cache.held(layer)[0] == 0 for layer in cache.attending):  # it can go back
            for other in [other for other in self._held if key[: len(other)] == other]:
                del self._held[other]
        self._held[key] = cache.copy()
        while self._held and self.nbytes > self.limit:
            del self._held[next(iter(self._held))]
