"""The KV cache: keys and values of the positions already read, so that none is computed twice."""

from __future__ import annotations

import torch
from torch import Tensor

from llmcli.model.config import ModelConfig

SPARE = 64  # positions that a windowed layer keeps beyond its window, so that a few can be taken back


class KVCache:
    """Keys and values per layer, [B, K, capacity, D], of the ``length`` positions read so far.

    A windowed layer keeps its window and little more. Buffers grow by half when full and shrink when
    less than half is used: appending and going back are cheap on average, and memory is at most twice
    what is used. One tensor a layer: writing a step touches only that step's rows. ``planned`` is the
    length that the caller expects to reach; ``span`` says by which angles the keys were turned (see
    ``rope.span``).
    """

    def __init__(self, config: ModelConfig, *, device: torch.device, dtype: torch.dtype, batch: int = 1) -> None:
        self.length = 0
        self.planned = 0
        self.span = 0
        layers = range(config.num_hidden_layers)
        windowed = [config.layer_type(layer) == "sliding_attention" for layer in layers]
        self._windows = [config.sliding_window if is_windowed else None for is_windowed in windowed]
        self._first = [0 for _ in layers]  # the position that stands first in a layer's buffers
        shape = (batch, config.num_key_value_heads, 0, config.head_dim)
        self._keys = [torch.empty(shape, device=device, dtype=dtype) for _ in layers]
        self._values = [torch.empty_like(keys) for keys in self._keys]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(t.nbytes for t in (*self._keys, *self._values))

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v [B, K, T, D] behind what is there; return that layer's keys and values [B, K, S, D].

        In a windowed layer these begin where its buffers do, at the latest with the first position
        that one of the T queries sees. ``length`` moves only with ``advance``, after the last layer:
        a forward pass that is interrupted leaves the cache as it was.
        """
        count = k.shape[2]
        end = self.length - self._first[layer] + count
        if end > self._keys[layer].shape[2]:
            window = self._windows[layer]
            kept = self.length if window is None else min(end - count, window - 1 + SPARE)
            end = kept + count
            self._resize(layer, kept, end + end // 2)
        keys, values = self._keys[layer], self._values[layer]
        keys.narrow(2, end - count, count).copy_(k)  # narrow: half the time of an index, four times a layer
        values.narrow(2, end - count, count).copy_(v)
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def advance(self, count: int) -> None:
        """Count the ``count`` positions just appended to every layer as filled."""
        self.length += count

    def truncate(self, length: int) -> None:
        """Forget every position from ``length`` on, and give back memory no longer needed.

        All positions are forgotten where a windowed layer no longer has those before ``length``.
        """
        assert 0 <= length <= self.length
        for window, first in zip(self._windows, self._first, strict=True):
            if window is not None and first > max(0, length - (window - 1)):
                length = 0
        self.length = length
        for layer, keys in enumerate(self._keys):  # each: an interrupted pass may have grown only some
            if length == 0:
                self._first[layer] = 0
            kept = length - self._first[layer]
            if keys.shape[2] > 2 * kept:
                self._resize(layer, kept, kept)

    def _resize(self, layer: int, kept: int, capacity: int) -> None:
        """Buffers of ``capacity`` positions that begin with the last ``kept`` before ``length``."""
        start = self.length - kept - self._first[layer]
        resized = []  # both before either is kept: memory may run out between them
        for old in (self._keys[layer], self._values[layer]):
            new = old.new_empty((*old.shape[:2], capacity, old.shape[3]))
            new[:, :, :kept] = old[:, :, start : start + kept]
            resized.append(new)
        self._keys[layer], self._values[layer] = resized
        self._first[layer] = self.length - kept
