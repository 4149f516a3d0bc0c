"""The KV cache: what each layer keeps of the positions read so far, so that they are computed only once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from llmcli.model.config import ModelConfig

FLOAT16_MAX = torch.finfo(torch.float16).max
SPARE = 64  # positions that a windowed layer keeps beyond its window, so that the last few can be truncated
MAX_SNAPSHOTS = 4  # earlier states of recurrent layers, to which a text can be truncated
PROMPT = 16  # positions of a pass after which the state is worth keeping; speculation checks fewer

State = tuple[Tensor, ...]  # what a recurrent layer keeps, fp32 [B, ...] each; never changed in place


class KeyValueStore(Protocol):
    """Where layers store what they keep of a pass, after what they keep of ``length`` positions."""

    length: int

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's k and v [B, K, T, D]; return all keys and values that the pass may see, [B, K, S, D]."""

    def appended(self, layer: int, count: int) -> tuple[Tensor, Tensor]:
        """What ``append`` returned for a layer in this pass over ``count`` positions."""

    def state(self, layer: int) -> State | None:
        """The state of a recurrent layer before the pass; None if nothing has been read."""

    def keep_state(self, layer: int, state: State) -> None:
        """Store the state of a recurrent layer after the pass."""


class PassStore:
    """The keys and values of a single pass that is not cached, for the layers that read those of other layers."""

    length = 0

    def __init__(self) -> None:
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self._held[layer] = k, v
        return k, v

    def appended(self, layer: int, count: int) -> tuple[Tensor, Tensor]:
        return self._held[layer]

    def state(self, layer: int) -> State | None:
        return None

    def keep_state(self, layer: int, state: State) -> None:
        """Nothing follows the pass."""


class Snapshot(NamedTuple):
    """The states of all recurrent layers after ``length`` positions. ``prompt``: the last pass was a long one."""

    length: int
    states: Mapping[int, State]
    prompt: bool


class KVCache:
    """Keys and values of layers with attention, [B, K, capacity, D], of the ``length`` positions read so far.

    ``attending`` are the layers that have some of their own; other layers with attention read theirs.
    With latent attention, K is 1, latent vectors take the place of keys, and values have no features.

    Recurrent layers have a state of fixed size instead. It cannot be truncated, so a few earlier ones are kept: that
    before the last pass, and those after the last long passes, such as prompts.

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
        self.attending = tuple(filter(config.keeps_kv, range(config.num_hidden_layers)))
        self.recurrent = tuple(filter(config.has_mixer, range(config.num_hidden_layers)))
        self._windows = {
            layer: config.sliding_window if config.layer_type(layer) == "sliding_attention" else None
            for layer in self.attending
        }
        self._first = dict.fromkeys(self.attending, 0)  # the first position in each layer's buffers
        self._device, self.dtype = device, dtype
        self._keys, self._values = {}, {}
        for layer in self.attending:
            heads, *widths = config.cached(layer)
            self._keys[layer], self._values[layer] = (
                torch.empty((batch, heads, 0, width), device=device, dtype=dtype) for width in widths
            )
        self._states: dict[int, State] = {}
        self._coming: dict[int, State] = {}  # those after the pass that is being made
        self._snapshots: list[Snapshot] = []
        self._prompt = False  # whether the last pass was a long one

    @property
    def nbytes(self) -> int:
        """The allocated bytes."""
        states = [self._states, self._coming, *(snapshot.states for snapshot in self._snapshots)]
        distinct = {id(tensor): tensor.nbytes for each in states for state in each.values() for tensor in state}
        buffers = (*self._keys.values(), *self._values.values())
        return sum(distinct.values()) + sum(buffer.nbytes for buffer in buffers)

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

    def appended(self, layer: int, count: int) -> tuple[Tensor, Tensor]:
        """What ``append`` returned for a layer in the present pass over ``count`` positions."""
        end = self.length - self._first[layer] + count
        return self._keys[layer].narrow(2, 0, end), self._values[layer].narrow(2, 0, end)

    def held(self, layer: int) -> tuple[int, Tensor, Tensor]:
        """The first position that a layer holds, and its keys and values from that position on, [B, K, held, D]."""
        first = self._first[layer]
        part = slice(0, self.length - first)
        return first, self._keys[layer][:, :, part], self._values[layer][:, :, part]

    def needed(self, layer: int, length: int) -> int:
        """The first position that a layer must hold for a position that follows ``length`` others."""
        window = self._windows[layer]
        return 0 if window is None else max(0, length - (window - 1))

    def buffers(self, layer: int) -> tuple[Tensor, Tensor, int]:
        """A layer's key and value buffers, [B, K, capacity, D], and the first position that they hold."""
        return self._keys[layer], self._values[layer], self._first[layer]

    def state(self, layer: int) -> State | None:
        """The state of a recurrent layer after ``length`` positions; None if that is 0."""
        return self._states.get(layer)

    def keep_state(self, layer: int, state: State) -> None:
        """Set the state of a recurrent layer after the present pass. It counts from ``advance`` on."""
        self._coming[layer] = state

    def copy(self) -> KVCache:
        """A cache with the same contents and buffers of its own."""
        other = KVCache(self._config, device=self._device, dtype=self.dtype, block=self.block)
        other.planned = self.planned
        held = {layer: self.held(layer)[1:] for layer in self.attending}
        other.restore(self.length, self.span, held, self._states)
        other._snapshots, other._prompt = list(self._snapshots), self._prompt
        return other

    def restore(
        self,
        length: int,
        span: int,
        held: Mapping[int, tuple[Tensor, Tensor]],
        states: Mapping[int, State],
    ) -> None:
        """Fill an empty cache with what another cache's ``held`` and ``state`` returned for each layer."""
        assert self.length == 0
        for layer, (keys, values) in held.items():
            self.append(layer, keys, values)
            self._first[layer] = length - keys.shape[2]
        self.length, self.span, self._states = length, span, dict(states)

    def reserve(self, count: int) -> None:
        """Make room for ``count`` more positions in every layer."""
        for layer in self.attending:
            if self.length - self._first[layer] + count > self._keys[layer].shape[2]:
                self._grow(layer, count)

    def room(self, *, windowed: bool) -> range:
        """The positions for which the buffers of all windowed layers, or of all other layers, have room."""
        layers = [layer for layer, window in self._windows.items() if (window is not None) == windowed]
        # After an interrupted pass, layers may differ.
        first = max((self._first[layer] for layer in layers), default=0)
        return range(first, min((self._first[layer] + self._keys[layer].shape[2] for layer in layers), default=first))

    def advance(self, count: int) -> None:
        """Add the ``count`` positions just appended to every layer to ``length``."""
        if self._coming:
            if self._snapshots and not self._snapshots[-1].prompt:
                self._snapshots.pop()
            if self.length:
                self._snapshots.append(Snapshot(self.length, self._states, self._prompt))
                del self._snapshots[:-MAX_SNAPSHOTS]
            self._states, self._coming, self._prompt = self._coming, {}, count > PROMPT
        self.length += count

    def truncate(self, length: int) -> None:
        """Drop every position from ``length`` on, and free memory no longer needed.

        Recurrent layers return to their latest kept state at or before ``length``, or to the beginning if there is
        none; the other layers are truncated to the same position. If a windowed layer no longer holds the positions
        that position ``length`` attends to, everything is dropped. So ``self.length`` may end up below ``length``.
        """
        assert 0 <= length <= self.length
        if self.recurrent and length < self.length:
            length = self._recall(length)
        if any(self._first[layer] > self.needed(layer, length) for layer in self.attending):
            length = 0
        self.length = length
        if length == 0:
            self.prepared = None
            self._states, self._snapshots = {}, []
        for layer in self.attending:  # an interrupted pass may have grown only some
            if length == 0:
                self._first[layer] = 0
            kept = length - self._first[layer]
            if self._keys[layer].shape[2] > self._whole(2 * kept):
                self._resize(layer, kept, kept)

    def _recall(self, length: int) -> int:
        """Restore the latest kept states at or before ``length``; return their position, 0 if there are none."""
        while self._snapshots:
            snapshot = self._snapshots.pop()
            if snapshot.length <= length:
                self._states, self._prompt = dict(snapshot.states), snapshot.prompt
                return snapshot.length
        return 0

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
        self._layers: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # keys, values, the index to write to
        for layer, window in cache._windows.items():
            windowed, first = int(window is not None), cache._first[layer]
            keys, values = cache._keys[layer], cache._values[layer]
            for buffer in (keys, values):
                # Unwritten memory may hold NaN, which a mask does not hide: 0 * NaN is NaN.
                buffer[:, :, cache.length - first :] = 0
            start, count = rooms[windowed].start - first, len(rooms[windowed])
            self._layers[layer] = keys.narrow(2, start, count), values.narrow(2, start, count), indices[windowed]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v [B, K, 1, D] at the token's index; return the layer's keys and values, [B, K, room, D]."""
        keys, values, index = self._layers[layer]
        keys.index_copy_(2, index, narrowed(k, self.dtype))
        values.index_copy_(2, index, narrowed(v, self.dtype))
        return keys, values

    def appended(self, layer: int, count: int) -> tuple[Tensor, Tensor]:
        keys, values, _ = self._layers[layer]
        return keys, values

    def state(self, layer: int) -> State | None:
        raise NotImplementedError("a state has no index")

    def keep_state(self, layer: int, state: State) -> None:
        raise NotImplementedError("a state has no index")


def state_before(cache: KeyValueStore | None, layer: int, shapes: Sequence[tuple[int, ...]], x: Tensor) -> State:
    """The state of a recurrent layer before a pass over x [B, T, C]; zeros of ``shapes`` if nothing has been read."""
    state = None if cache is None else cache.state(layer)
    return tuple(torch.zeros(len(x), *shape, device=x.device) for shape in shapes) if state is None else state


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in the cache's dtype; numbers too large for float16 become its largest."""
    if dtype == torch.float16:
        x = x.clamp(-FLOAT16_MAX, FLOAT16_MAX)
    return x.to(dtype)
