"""The KV cache: keys and values of the positions read so far, so that they are computed only once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from llmcli.model.config import ModelConfig

FLOAT16_MAX = torch.finfo(torch.float16).max
SPARE = 64  # positions that a windowed layer keeps beyond its window, so that the last few can be truncated


class KeyValueStore(Protocol):
    """Where attention stores the keys and values of a pass, after those of ``length`` positions."""

    length: int

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's k and v [B, K, T, D]; return all keys and values that the pass may see, [B, K, S, D]."""


class KVCache:
    """Keys and values per layer, [B, K, capacity, D], of the ``length`` positions read so far.

    A windowed layer keeps little more than its window. Buffers grow by half when full and shrink when less than half
    is used: appending and truncating are cheap on average, and memory is at most twice what is used. Each layer has
    its own tensors, so that a step writes only the new positions. ``planned`` is the length that the caller expects to
    reach; ``span`` says by which angles the keys were rotated (see ``positions.span``). ``prepared`` is what
    an engine keeps to decode with the current buffers, dropped when one of them is replaced; to make that rare,
    capacities are multiples of ``block`` positions.
    """

    def __init__(
        self, config: ModelConfig, *, device: torch.device, dtype: torch.dtype, batch: int = 1, block: int = 1
    ) -> None:
        self._config = config
        self.length = 0
        self.planned = 0
        self.span = 0
        self.block = block
        self.prepared: object | None = None
        layers = range(config.num_hidden_layers)
        windowed = [config.layer_type(layer) == "sliding_attention" for layer in layers]
        self._windows = [config.sliding_window if is_windowed else None for is_windowed in windowed]
        self._first = [0 for _ in layers]  # the first position in each layer's buffers
        shape = (batch, config.num_key_value_heads, 0, config.head_dim)
        self._keys = [torch.empty(shape, device=device, dtype=dtype) for _ in layers]
        self._values = [torch.empty_like(keys) for keys in self._keys]

    @property
    def layers(self) -> int:
        """The number of layers."""
        return len(self._keys)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of keys and values."""
        return self._keys[0].dtype

    @property
    def nbytes(self) -> int:
        """The allocated bytes."""
        return sum(t.nbytes for t in (*self._keys, *self._values))

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k and v [B, K, T, D] to a layer; return the layer's keys and values [B, K, S, D].

        A windowed layer returns what its buffers hold, which includes all positions that one of the T queries sees.
        ``length`` changes only with ``advance``, after the last layer, so that an interrupted forward pass leaves the
        cache as it was.
        """
        count = k.shape[2]
        end = self.length - self._first[layer] + count
        if end > self._keys[layer].shape[2]:
            end = self._grow(layer, count)
        keys, values = self._keys[layer], self._values[layer]
        keys.narrow(2, end - count, count).copy_(narrowed(k, keys.dtype))
        values.narrow(2, end - count, count).copy_(narrowed(v, values.dtype))
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def held(self, layer: int) -> tuple[int, Tensor, Tensor]:
        """The first position that a layer holds, and its keys and values from that position on, [B, K, held, D]."""
        first = self._first[layer]
        part = slice(0, self.length - first)
        return first, self._keys[layer][:, :, part], self._values[layer][:, :, part]

    def buffers(self, layer: int) -> tuple[Tensor, Tensor, int]:
        """A layer's key and value buffers, [B, K, capacity, D], and the first position that they hold."""
        return self._keys[layer], self._values[layer], self._first[layer]

    def copy(self) -> KVCache:
        """A cache with the same contents and buffers of its own."""
        other = KVCache(self._config, device=self._keys[0].device, dtype=self.dtype, block=self.block)
        other.planned = self.planned
        other.restore(self.length, self.span, (self.held(layer)[1:] for layer in range(self.layers)))
        return other

    def restore(self, length: int, span: int, layers: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Fill an empty cache with the keys and values that ``held`` returned for each layer of another cache."""
        assert self.length == 0
        for layer, (keys, values) in enumerate(layers):
            self.append(layer, keys, values)
            self._first[layer] = length - keys.shape[2]
        self.length, self.span = length, span

    def reserve(self, count: int) -> None:
        """Make room for ``count`` more positions in every layer."""
        for layer, keys in enumerate(self._keys):
            if self.length - self._first[layer] + count > keys.shape[2]:
                self._grow(layer, count)

    def room(self, *, windowed: bool) -> range:
        """The positions for which the buffers of all windowed layers, or of all other layers, have room."""
        layers = [layer for layer, window in enumerate(self._windows) if (window is not None) == windowed]
        # After an interrupted pass, layers may differ.
        first = max((self._first[layer] for layer in layers), default=0)
        return range(first, min((self._first[layer] + self._keys[layer].shape[2] for layer in layers), default=first))

    def advance(self, count: int) -> None:
        """Add the ``count`` positions just appended to every layer to ``length``."""
        self.length += count

    def truncate(self, length: int) -> None:
        """Drop every position from ``length`` on, and free memory no longer needed.

        Drops all positions if a windowed layer does not hold those that the position ``length`` attends to.
        """
        assert 0 <= length <= self.length
        for window, first in zip(self._windows, self._first, strict=True):
            if window is not None and first > max(0, length - (window - 1)):
                length = 0
        self.length = length
        if length == 0:
            self.prepared = None
        for layer, keys in enumerate(self._keys):  # an interrupted pass may have grown only some
            if length == 0:
                self._first[layer] = 0
            kept = length - self._first[layer]
            if keys.shape[2] > self._whole(2 * kept):
                self._resize(layer, kept, kept)

    def _grow(self, layer: int, count: int) -> int:
        """Make room for ``count`` more positions in a layer's buffers; return the index at which they will end."""
        window, held = self._windows[layer], self.length - self._first[layer]
        kept = held if window is None else min(held, window - 1 + SPARE)
        end = kept + count
        self._resize(layer, kept, end + end // 2)
        return end

    def _whole(self, positions: int) -> int:
        """``positions`` rounded up to whole blocks."""
        return -(-positions // self.block) * self.block

    def _resize(self, layer: int, kept: int, capacity: int) -> None:
        """Move a layer to buffers of ``capacity`` positions that begin with the last ``kept`` positions."""
        self.prepared, capacity = None, self._whole(capacity)
        start = self.length - kept - self._first[layer]
        resized = []  # replaced together, because memory may run out between the two
        for old in (self._keys[layer], self._values[layer]):
            new = old.new_empty((*old.shape[:2], capacity, old.shape[3]))
            new[:, :, :kept] = old[:, :, start : start + kept]
            resized.append(new)
        self._keys[layer], self._values[layer] = resized
        self._first[layer] = self.length - kept


class StaticCache:
    """A view of a cache's current buffers that stores one token at an index read from a tensor.

    So the same operations serve every position and can be recorded. ``indices`` are the token's index in layers with
    full and with windowed attention, counted from the start of the cache's ``room`` there: [1] each, int64, on the
    cache's device. The view keeps the buffers alive, but not the cache; ``length`` is initially the cache's.
    """

    def __init__(self, cache: KVCache, indices: tuple[Tensor, Tensor]) -> None:
        self.length, self.dtype = cache.length, cache.dtype
        rooms = [cache.room(windowed=windowed) for windowed in (False, True)]
        self._layers: list[tuple[Tensor, Tensor, Tensor]] = []  # keys, values, the index to write to
        for layer, window in enumerate(cache._windows):
            windowed, first = int(window is not None), cache._first[layer]
            keys, values = cache._keys[layer], cache._values[layer]
            for buffer in (keys, values):
                # Unwritten memory may hold NaN, which a mask does not hide: 0 * NaN is NaN.
                buffer[:, :, cache.length - first :] = 0
            start, count = rooms[windowed].start - first, len(rooms[windowed])
            self._layers.append((keys.narrow(2, start, count), values.narrow(2, start, count), indices[windowed]))

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v [B, K, 1, D] at the token's index; return the layer's keys and values, [B, K, room, D]."""
        keys, values, index = self._layers[layer]
        keys.index_copy_(2, index, narrowed(k, self.dtype))
        values.index_copy_(2, index, narrowed(v, self.dtype))
        return keys, values


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in the cache's dtype; numbers too large for float16 become its largest."""
    if dtype == torch.float16:
        x = x.clamp(-FLOAT16_MAX, FLOAT16_MAX)
    return x.to(dtype)
