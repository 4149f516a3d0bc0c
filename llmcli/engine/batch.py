"""Batched decoding: the caches of several texts, and a step that feeds each text one token.

A text's logits do not depend on the others in the batch. With the compiled engine they are those of the text alone, bit
for bit. In torch, one cache has a text per row; its buffers always hold whole blocks of rows and of positions, for
which most kernels give a row the same bits whatever the other rows hold. (On a CPU not always for fp32 attention on
several threads.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmcli.engine.attention import kernel_dtype
from llmcli.engine.native import NativeStep
from llmcli.engine.transformer import EngineTransformer, cache_dtype
from llmcli.model import positions
from llmcli.model.cache import KVCache, State, narrowed
from llmcli.model.config import RopeConfig
from llmcli.model.positions import Placements, Rotation
from llmcli.model.transformer import Transformer

ROW_BLOCK = 8  # products of this many vectors, or of a multiple, have the same bits for each of them
POSITION_BLOCK = 64  # the same for the keys that attention sees


class BatchedCache:
    """Keys and values of several texts, [rows, K, capacity, D] per layer; ``lengths`` are the texts' positions.

    Every layer with keys of its own keeps all positions, windowed ones too: a mask hides what a query must not see.
    Recurrent layers keep the texts' states, [rows, ...]. Rows after the last text are padding, computed and discarded.
    """

    length = 0  # the mask says which positions each text has

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.lengths: list[int] = []
        self._spans: list[int] = []  # which angles each text's keys have; see ``positions.span``
        self._planned: list[int] = []
        self.capacity = 0  # positions that each row has room for
        self._held = 0  # rows that there is room for
        self._keys, self._values = self._empty()
        self._states: dict[int, State] = {}
        self._tables: dict[tuple[RopeConfig, int], Rotation] = {}
        self._written = (torch.empty(0), torch.empty(0))  # rows of this pass, and the positions written to in each

    @property
    def padded(self) -> int:
        """The number of rows of a pass, padding included."""
        return _whole(len(self.lengths), ROW_BLOCK)

    @torch.inference_mode()
    def add(self, cache: KVCache) -> None:
        """Add a text by copying the cache that it was read with."""
        self.lengths.append(cache.length)
        self._spans.append(cache.span)
        self._planned.append(cache.planned)
        self._fit()
        last = len(self.lengths) - 1
        for layer in cache.attending:
            first, k, v = cache.held(layer)
            self._keys[layer][last : last + 1, :, first : cache.length] = k
            self._values[layer][last : last + 1, :, first : cache.length] = v
        for layer in cache.recurrent:
            state = cache.state(layer)
            assert state is not None
            before = self._states.get(layer, tuple(part[:0] for part in state))
            self._states[layer] = tuple(
                self._padded(torch.cat((old[:last], part))) for old, part in zip(before, state, strict=True)
            )

    @torch.inference_mode()
    def fork(self, row: int) -> None:
        """Add a text that begins as that of ``row`` does, by copying what is kept of it."""
        last = len(self.lengths)
        for numbers in (self.lengths, self._spans, self._planned):
            numbers.append(numbers[row])
        self._fit()
        for buffer in (*self._keys.values(), *self._values.values()):
            buffer[last] = buffer[row]
        for layer, state in self._states.items():
            self._states[layer] = tuple(self._padded(torch.cat((part[:last], part[row : row + 1]))) for part in state)

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        """Drop a text, whose cache is lost; the last text moves into its row."""
        last = len(self.lengths) - 1
        states = [part for state in self._states.values() for part in state]
        for buffer in (*self._keys.values(), *self._values.values(), *states):
            buffer[row] = buffer[last]
        for numbers in (self.lengths, self._spans, self._planned):
            numbers[row] = numbers[-1]
            numbers.pop()
        for layer, state in self._states.items():
            self._states[layer] = tuple(self._padded(part[:last]) for part in state)
        self._fit()

    def planned(self, row: int) -> int:
        """The length that determines a text's angles: its planned length, or its length with one more token."""
        return max(self.lengths[row] + 1, self._planned[row])

    def stale(self, row: int) -> bool:
        """Whether one more position needs other angles than the text's keys have: the keys must be recomputed."""
        return positions.span(self.model.config.rope, self.planned(row)) != self._spans[row]

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Feed each text one token; return the logits after it, fp32 [texts, V].

        Raises LlmcliError if a text would grow beyond the learned positions.
        """
        model, count = self.model, len(tokens)
        model.check_positions(max(self.lengths) + 1)
        self._fit()
        padding = [0] * (self.padded - count)
        at = torch.tensor([*self.lengths, *padding], device=model.device)
        self._written = torch.arange(len(at), device=model.device), at
        ids = torch.tensor([*tokens, *padding], device=model.device).unsqueeze(1)
        x = model.embed_tokens(ids)  # [rows, 1, C]
        if model.positions is not None:
            x = x + model.positions(at).unsqueeze(1)
        x = model.run_blocks(ids, x, self._placements(at), self, at=at.unsqueeze(1))
        logits = model.unembed(x[:, 0])[:count].float()
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v [rows, K, 1, D] at each text's position; return the layer's buffers [rows, K, capacity, D]."""
        rows, at = self._written
        keys, values = self._keys[layer][: len(rows)], self._values[layer][: len(rows)]
        keys[rows, :, at] = narrowed(k.squeeze(2), keys.dtype)
        values[rows, :, at] = narrowed(v.squeeze(2), values.dtype)
        return keys, values

    def appended(self, layer: int, count: int) -> tuple[Tensor, Tensor]:
        """What ``append`` returned for a layer in this step."""
        rows, _ = self._written
        return self._keys[layer][: len(rows)], self._values[layer][: len(rows)]

    def state(self, layer: int) -> State:
        """The texts' states of a recurrent layer."""
        return self._states[layer]

    def keep_state(self, layer: int, state: State) -> None:
        """Replace the texts' states of a recurrent layer."""
        self._states[layer] = state

    def _padded(self, part: Tensor) -> Tensor:
        """A part of the texts' states [texts, ...] with as many rows as a pass has; those after the texts are zero."""
        return torch.cat((part, part.new_zeros(self.padded - len(part), *part.shape[1:])))

    def _fit(self) -> None:
        """Resize the buffers if one more position per text does not fit or if they are more than twice too large."""
        rows, needed = self.padded, _whole(max(self.lengths, default=0) + 1, POSITION_BLOCK)
        held = self._held
        if rows <= held <= 2 * rows and needed <= self.capacity <= 2 * needed:
            return
        for buffers in (self._keys, self._values):
            for layer, old in buffers.items():
                new = old.new_zeros(rows, old.shape[1], needed, old.shape[3])  # a mask does not hide NaN
                part = (slice(0, min(rows, held)), slice(None), slice(0, min(needed, old.shape[2])))
                new[part] = old[part]
                buffers[layer] = new
        self._held, self.capacity = rows, needed

    def _empty(self) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Buffers for the keys and the values of each layer that keeps some, without rows."""
        config = self.model.config
        keys, values = {}, {}
        for layer in filter(config.keeps_kv, range(config.num_hidden_layers)):
            heads, *widths = config.cached(layer)
            keys[layer], values[layer] = (
                torch.empty(0, heads, 0, width, device=self.model.device, dtype=self._dtype) for width in widths
            )
        return keys, values

    @property
    def _dtype(self) -> torch.dtype:
        """The dtype of keys and values."""
        return cache_dtype(self.model.dtype, self.model.device)

    def _placements(self, at: Tensor) -> Placements:
        """The placements of one query per row, at the positions ``at`` [rows]."""
        keys = torch.arange(self.capacity, device=at.device)
        queries = at[:, None, None, None]  # [rows, 1, 1, 1]; masks are [rows, 1, 1, capacity]
        model = self.model
        dtype = kernel_dtype(self._dtype, at.device)
        return positions.single(model.config, queries, (keys, keys), dtype, lambda rope: self._rotation(rope, at))

    def _rotation(self, rope: RopeConfig, at: Tensor) -> Rotation:
        """cos and signed sin of one position per row, each [rows, 1, 1, R]; rows may differ in their span."""
        spans = [*self._spans, *[0] * (len(at) - len(self._spans))]
        distinct = sorted(set(spans))
        tables = [self._table(rope, span) for span in distinct]
        offsets = torch.tensor([distinct.index(span) for span in spans], device=at.device) * len(tables[0][0])
        cos, signed_sin = (torch.cat(parts)[at + offsets][:, None, None] for parts in zip(*tables, strict=True))
        return cos, signed_sin

    def _table(self, rope: RopeConfig, span: int) -> Rotation:
        """The rotation of every position that a row has room for, [capacity, R] each."""
        key = (rope, span)
        if key not in self._tables or len(self._tables[key][0]) != self.capacity:
            self._tables = {other: table for other, table in self._tables.items() if len(table[0]) == self.capacity}
            self._tables[key] = self.model.rotation(rope, 0, self.capacity, span)
        return self._tables[key]


class SeparateCaches:
    """The caches of several texts that the compiled engine feeds together; the same interface as ``BatchedCache``.

    A text's logits are those that it would have alone, bit for bit.
    """

    def __init__(self, model: Transformer, native: NativeStep) -> None:
        self.model, self._native = model, native
        self._caches: list[KVCache] = []

    def add(self, cache: KVCache) -> None:
        """Add a text by copying the cache that it was read with."""
        self._caches.append(cache.copy())

    def fork(self, row: int) -> None:
        """Add a text that begins as that of ``row`` does, by copying what is kept of it."""
        self.add(self._caches[row])

    def remove(self, row: int) -> KVCache:
        """Drop a text and return its cache; the last text moves into its row."""
        self._caches[row], self._caches[-1] = self._caches[-1], self._caches[row]
        return self._caches.pop()

    def planned(self, row: int) -> int:
        """The length that determines a text's angles: its planned length, or its length with one more token."""
        return max(self._caches[row].length + 1, self._caches[row].planned)

    def stale(self, row: int) -> bool:
        """Whether one more position needs other angles than the text's keys have: the keys must be recomputed."""
        return self.model.stale(self._caches[row], 1)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Feed each text one token; return the logits after it, fp32 [texts, V]."""
        return self._native.feed_each(tokens, self._caches)


def batch_cache(model: Transformer) -> BatchedCache | SeparateCaches:
    """What decodes several texts of ``model`` together: the compiled engine if there is one, otherwise torch."""
    native = model.native if isinstance(model, EngineTransformer) else None
    return BatchedCache(model) if native is None else SeparateCaches(model, native)


def _whole(count: int, block: int) -> int:
    """``count`` rounded up to whole blocks, at least one."""
    return max(-(-count // block), 1) * block
