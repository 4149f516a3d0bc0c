"""The keys and values of texts that were read or generated before, so that a prompt reads only what is new.

They are a tree of parts (``reading.parts_of``): texts with a common beginning share its nodes. What the model computes
for a part does not depend on what follows or on what was kept, so a text has the same tokens with and without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor

from llmcli.generation.reading import Part, Span, chunk_of, common_prefix, native_of, parts_of
from llmcli.model.cache import KVCache, State
from llmcli.model.transformer import Transformer

OVERHEAD = 1024  # bytes that a tensor takes beside its numbers, about

Key = tuple[bool, tuple[int, ...]]  # whether the model generated the part, and its ids


@dataclass(eq=False)
class Node:
    """What the cache holds of one part of a text, which ends before position ``end``.

    ``held`` are the keys and values of the part's positions, by layer, [1, K, T, D]: fewer than the part's, its last
    ones, if the layer's window had moved on. ``states`` are the states of recurrent layers at ``end``; {} if there are
    none or they were dropped. ``used`` orders nodes by their last use.
    """

    key: Key = (False, ())
    end: int = 0
    above: Node | None = None
    held: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    states: Mapping[int, State] = field(default_factory=dict)
    used: int = 0
    children: dict[Key, Node] = field(default_factory=dict)

    @property
    def start(self) -> int:
        return self.end - len(self.key[1])


class Prefixes:
    """Parts of texts in at most ``limit`` bytes, ``nbytes`` now; what was used least recently goes first."""

    def __init__(self, model: Transformer, limit: int) -> None:
        self.model, self.limit = model, limit
        self.nbytes = 0
        self._chunk = chunk_of(model)
        self._roots: dict[int, Node] = {}  # by span: texts with other angles have other keys
        self._nodes: set[Node] = set()
        self._clock = count(1)

    def find(self, ids: Sequence[int], planned: int, generated: Sequence[Span] = ()) -> KVCache:
        """Return a new cache with the longest beginning of the prompt ``ids`` that is kept, without its last token.

        ``planned`` is the text length that determines the rotary angles. ``generated`` are the spans of ``ids`` that
        the model wrote.
        """
        cache = self.model.new_cache()
        cache.planned = planned
        span = self.model.span(cache, len(ids))
        path, length = self._longest(ids, parts_of(self.model, len(ids), generated), self._roots.get(span, Node()))
        for node in path:
            node.used = next(self._clock)
        while path:
            held = self._joined(path, length, cache)
            if held is not None and (path[-1].states or not cache.recurrent):
                cache.restore(length, span, held, path[-1].states)
                break
            path.pop()
            length = path[-1].end if path else 0
        return cache

    def keep(self, ids: Sequence[int], cache: KVCache, generated: Sequence[Span] = ()) -> None:
        """Keep what ``cache`` holds of the text ``ids``.

        Does nothing if ``limit`` is 0, or if PyTorch decodes and the cache does not end at a multiple of ``chunk_of``.
        """
        if not self.limit or (cache.length % self._chunk and native_of(self.model) is None):
            return
        node = self._roots.setdefault(cache.span, Node())
        for part in parts_of(self.model, cache.length, generated):
            node = node.children.get(_key(ids, part)) or self._add(_key(ids, part), part.end, node, cache)
            node.used = next(self._clock)
        if not node.states:
            states = {layer: cache.state(layer) for layer in cache.recurrent}
            node.states = {layer: state for layer, state in states.items() if state is not None}
            self.nbytes += _nbytes(node.states)
        while self.nbytes > self.limit:
            self._drop_oldest()

    def _add(self, key: Key, end: int, above: Node, cache: KVCache) -> Node:
        """Add a copy of what a cache holds of one part."""
        node = above.children[key] = Node(key, end, above)
        held = {}
        for layer in cache.attending:
            first, keys, values = cache.held(layer)
            some = slice(max(node.start - first, 0), max(end - first, 0))
            held[layer] = keys[:, :, some].clone(), values[:, :, some].clone()
        node.held = held
        self._nodes.add(node)
        self.nbytes += _nbytes(held)
        return node

    def _longest(self, ids: Sequence[int], parts: Sequence[Part], node: Node) -> tuple[list[Node], int]:
        """Return the nodes that match the text, from the root ``node``, and how many of its positions they cover.

        A generated part may match only up to some position, because its positions were computed one by one.
        """
        path: list[Node] = []
        for part in parts:
            found = node.children.get(_key(ids, part))
            if found is None or part.end == len(ids):
                return _extended(path, node, ids[part.start : min(part.end, len(ids) - 1)] if part.generated else ())
            path.append(found)
            node = found
        return path, node.end

    def _joined(self, path: Sequence[Node], length: int, cache: KVCache) -> dict[int, tuple[Tensor, Tensor]] | None:
        """The keys and values that the layers need after ``length`` positions; None if some were not kept."""
        joined = {}
        for layer in cache.attending:
            needed, parts = cache.needed(layer, length), []
            for node in path:
                keys, values = node.held[layer]
                first = node.end - keys.shape[2]
                start, end = max(needed, node.start), min(length, node.end)
                if start < end and start < first:
                    return None
                some = slice(start - first, max(end, start) - first)
                parts.append((keys[:, :, some], values[:, :, some]))
            keys, values = (torch.cat(tensors, dim=2) for tensors in zip(*parts, strict=True))
            joined[layer] = keys, values
        return joined

    def _drop_oldest(self) -> None:
        """Drop the part that was used least recently of those that end a path, or the states of another one."""
        oldest = min((node for node in self._nodes if node.states or not node.children), key=lambda node: node.used)
        self.nbytes -= _nbytes(oldest.states)
        oldest.states = {}
        if not oldest.children:
            assert oldest.above is not None
            self.nbytes -= _nbytes(oldest.held)
            self._nodes.remove(oldest)
            del oldest.above.children[oldest.key]


def _extended(path: list[Node], node: Node, ids: Sequence[int]) -> tuple[list[Node], int]:
    """``path``, which ends with ``node``, and as much as there is of ``ids`` after it, which the model generated."""
    shared = {child: common_prefix(child.key[1], ids) for child in node.children.values() if child.key[0]}
    best = max(shared, key=lambda child: shared[child], default=None)
    if best is None or not shared[best]:
        return path, node.end
    return [*path, best], node.end + shared[best]


def _key(ids: Sequence[int], part: Part) -> Key:
    return part.generated, tuple(ids[part.start : part.end])


def _nbytes(kept: Mapping[int, tuple[Tensor, ...]]) -> int:
    return sum(tensor.nbytes + OVERHEAD for tensors in kept.values() for tensor in tensors)
