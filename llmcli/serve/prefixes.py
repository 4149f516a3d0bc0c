"""The keys and values of prompts that were read before, so that a prompt with the same beginning reads only the rest.

They are a tree of chunks: prompts with a common beginning share its nodes. Only whole chunks are kept
(``steps.chunk_of``): what the model computes for those does not depend on what follows or on what was kept, so a text
has the same tokens with and without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor

from llmcli.generation.steps import chunk_of
from llmcli.model.cache import KVCache, State
from llmcli.model.transformer import Transformer

Ids = tuple[int, ...]


@dataclass(eq=False)
class Node:
    """What the layers keep of one chunk, ``ids``, after those of ``above``. ``used`` grows with every use.

    ``held`` are the keys and values of the chunk's own positions. ``firsts`` are the first positions that a cache which
    ends here holds in each layer, and ``states`` those of its recurrent layers; {} if there are none or they were
    dropped.
    """

    ids: Ids = ()
    above: Node | None = None
    held: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    firsts: Mapping[int, int] = field(default_factory=dict)
    states: Mapping[int, State] = field(default_factory=dict)
    used: int = 0
    children: dict[Ids, Node] = field(default_factory=dict)


class Prefixes:
    """Chunks of prompts in at most ``limit`` bytes, ``nbytes`` now; what was used least recently goes first."""

    def __init__(self, model: Transformer, limit: int) -> None:
        self.limit, self.chunk = limit, chunk_of(model)
        self.model = model
        self.nbytes = 0
        self._roots: dict[int, Node] = {}  # by span: texts with other angles have other keys
        self._nodes: set[Node] = set()
        self._clock = count(1)

    def find(self, ids: Sequence[int], planned: int) -> KVCache:
        """A cache of its own for a prompt, with as much of its beginning as is kept.

        ``planned`` is the length that its angles are computed for.
        """
        cache = self.model.new_cache()
        cache.planned = planned
        span = self.model.span(cache, len(ids))
        path = self._path(self._chunks(ids), span)
        while path and cache.recurrent and not path[-1].states:
            path.pop()
        if path:
            held = {layer: self._joined(path, layer) for layer in cache.attending}
            cache.restore(len(path) * self.chunk, span, held, path[-1].states)
        return cache

    def keep(self, ids: Sequence[int], cache: KVCache) -> None:
        """Keep the last chunk of a cache that holds the beginning of a prompt, if the chunk is whole."""
        number, rest = divmod(cache.length, self.chunk)
        chunks = self._chunks(ids)[:number]
        if rest or not self.limit or not 0 < number == len(chunks):
            return
        above = [self._roots.setdefault(cache.span, Node()), *self._path(chunks[:-1], cache.span)]
        if len(above) < number:  # a chunk before it has been dropped
            return
        node = above[-1].children.get(chunks[-1])
        if node is None:
            node = self._add(chunks[-1], above[-1], cache)
        if not node.states:
            states = {layer: cache.state(layer) for layer in cache.recurrent}
            node.states = {layer: state for layer, state in states.items() if state is not None}
            self.nbytes += _nbytes(node.states)
        node.used = next(self._clock)
        while self.nbytes > self.limit:
            self._drop_oldest()

    def _add(self, ids: Ids, above: Node, cache: KVCache) -> Node:
        """Add a copy of the last chunk of a cache."""
        held, firsts = {}, {}
        for layer in cache.attending:
            firsts[layer], keys, values = cache.held(layer)
            assert keys.shape[2] >= self.chunk, "the chunk was one pass"
            held[layer] = keys[:, :, -self.chunk :].clone(), values[:, :, -self.chunk :].clone()
        node = above.children[ids] = Node(ids, above, held, firsts)
        self._nodes.add(node)
        self.nbytes += _nbytes(held)
        return node

    def _chunks(self, ids: Sequence[int]) -> list[Ids]:
        """The whole chunks of a prompt without its last token, which is always read."""
        whole = (len(ids) - 1) // self.chunk
        return [tuple(ids[n * self.chunk : (n + 1) * self.chunk]) for n in range(whole)]

    def _path(self, chunks: Sequence[Ids], span: int) -> list[Node]:
        """The nodes of chunks from the root, as far as there are any. They are used now."""
        node, path = self._roots.get(span, Node()), []
        for chunk in chunks:
            if chunk not in node.children:
                break
            node = node.children[chunk]
            node.used = next(self._clock)
            path.append(node)
        return path

    def _joined(self, path: Sequence[Node], layer: int) -> tuple[Tensor, Tensor]:
        """The keys and values that a layer holds at the end of a path."""
        skipped, start = divmod(path[-1].firsts[layer], self.chunk)
        keys, values = zip(*(node.held[layer] for node in path[skipped:]), strict=True)
        return torch.cat(keys, dim=2)[:, :, start:], torch.cat(values, dim=2)[:, :, start:]

    def _drop_oldest(self) -> None:
        """Drop the chunk that was used least recently of those that end a path, or the states of another one."""
        oldest = min((node for node in self._nodes if node.states or not node.children), key=lambda node: node.used)
        self.nbytes -= _nbytes(oldest.states)
        oldest.states = {}
        if not oldest.children:
            assert oldest.above is not None
            self.nbytes -= _nbytes(oldest.held)
            self._nodes.remove(oldest)
            del oldest.above.children[oldest.ids]


def _nbytes(kept: Mapping[int, tuple[Tensor, ...]]) -> int:
    return sum(tensor.nbytes for tensors in kept.values() for tensor in tensors)
