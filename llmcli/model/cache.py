"""The KV cache: keys and values of the positions already read, so that none is computed twice."""

from __future__ import annotations

import torch
from torch import Tensor

from llmcli.model.config import ModelConfig


class KVCache:
    """Keys and values per layer, [B, K, capacity, D], of which the first ``length`` positions are filled.

    Grows by half when full and shrinks when less than half is used: appending and going back are
    cheap on average, and memory is at most twice what is used. One tensor a layer: writing a step
    touches only that step's rows. ``planned`` is the length that the caller expects to reach;
    ``span`` says by which angles the keys were turned (see ``rope.span``).
    """

    def __init__(self, config: ModelConfig, *, device: torch.device, dtype: torch.dtype, batch: int = 1) -> None:
        self.length = 0
        self.planned = 0
        self.span = 0
        shape = (batch, config.num_key_value_heads, 0, config.head_dim)
        self._keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self._values = [torch.empty_like(keys) for keys in self._keys]

    @property
    def capacity(self) -> int:
        """Positions that fit before the cache must grow."""
        return self._keys[-1].shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(t.nbytes for t in (*self._keys, *self._values))

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v [B, K, T, D] behind what is there; return that layer's keys and values [B, K, S, D].

        ``length`` moves only with ``advance``, after the last layer: a forward pass that is
        interrupted leaves the cache as it was.
        """
        start, end = self.length, self.length + k.shape[2]
        if end > self._keys[layer].shape[2]:
            self._resize(layer, end + end // 2)
        keys, values = self._keys[layer], self._values[layer]
        keys.narrow(2, start, end - start).copy_(k)  # narrow: half the time of an index, four times a layer
        values.narrow(2, start, end - start).copy_(v)
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def advance(self, count: int) -> None:
        """Count the ``count`` positions just appended to every layer as filled."""
        self.length += count

    def truncate(self, length: int) -> None:
        """Forget every position from ``length`` on, and give back memory no longer needed."""
        assert 0 <= length <= self.length
        self.length = length
        for layer, keys in enumerate(self._keys):  # each: an interrupted pass may have grown only some
            if keys.shape[2] > 2 * length:
                self._resize(layer, length)

    def _resize(self, layer: int, capacity: int) -> None:
        resized = []  # both before either is kept: memory may run out between them
        for old in (self._keys[layer], self._values[layer]):
            new = old.new_empty((*old.shape[:2], capacity, old.shape[3]))
            new[:, :, : self.length] = old[:, :, : self.length]
            resized.append(new)
        self._keys[layer], self._values[layer] = resized
