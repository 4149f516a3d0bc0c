"""Decoding on a GPU: the step of one token, recorded once as a CUDA graph and replayed for every token.

A step is some hundred small kernels, which Python starts more slowly than a GPU runs them; those of a
graph it starts all at once. A graph is always the same kernels over the same memory. So whatever differs
between tokens is read from memory on the device: the token and its position, and by the position the
angles, the mask and where in the cache the keys go. And every key that the cache has room for takes
part: what is not yet written is masked.

Source: "CUDA Graphs" in PyTorch's notes on CUDA semantics; the static cache of gpt-fast (PyTorch 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmcli.model.attention import Place
from llmcli.model.cache import KVCache, Slot
from llmcli.model.config import RopeConfig
from llmcli.model.transformer import Transformer


def replays(model: Transformer) -> bool:
    """Whether ``decode`` is the fast way to take this model's steps."""
    return model.device.type == "cuda" and model.config.one_path and model.alone


@torch.inference_mode()
def decode(model: Transformer, token: int, cache: KVCache) -> Tensor:
    """Feed one token through a cache of one text; the logits that follow it, fp32 [1, V].

    They are those of ``model(ids, cache)``, up to rounding. The step is kept in the cache: as long as
    that is in use, the model's parameters must stay where they are.
    Errors: a position beyond those that were learned.
    """
    assert model.config.one_path, "experts are chosen on the host"
    model.check_positions(cache.length + 1)
    span = model.turn(cache, 1)
    cache.reserve(1)
    graph = cache.graph
    if not isinstance(graph, DecodeGraph) or graph.span != span:
        cache.graph = graph = DecodeGraph(model, cache)
    logits = graph.run(token, cache.length)
    cache.advance(1)
    return logits


class DecodeGraph:
    """The step of one token over one cache's present tensors, its keys turned by the angles of ``span``.

    On a GPU it is recorded when it first runs; elsewhere the same operations run one by one.
    """

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        self.model, self.span = model, cache.span
        # What differs between tokens: the token, its position, and where that is in windowed layers' buffers.
        self._inputs = torch.zeros(3, dtype=torch.long, device=model.device)
        self._token, self._position = self._inputs[:1].view(1, 1), self._inputs[1:2]
        self._slot = Slot(cache, (self._position, self._inputs[2:]))
        full, windowed = (cache.room(windowed=windowed) for windowed in (False, True))
        self._first = windowed.start
        self._full, self._windowed = (  # the positions of the keys, [1, room]
            torch.arange(room.start, room.stop, device=model.device).unsqueeze(0) for room in (full, windowed)
        )
        self._angles = {
            rope: model.angles(rope, 0, max(full.stop, windowed.stop), cache.span)
            for rope in (model.config.rope, model.config.local_rope)
            if rope is not None
        }
        self._recorded: tuple[torch.cuda.CUDAGraph, Tensor] | None = None

    def run(self, token: int, position: int) -> Tensor:
        """The logits behind ``token``, which stands at ``position``, the first that is free: fp32 [1, V]."""
        on_gpu = self._inputs.is_cuda
        inputs = torch.tensor([token, position, position - self._first], pin_memory=on_gpu)
        self._inputs.copy_(inputs, non_blocking=True)
        if self._recorded is None:
            if not on_gpu:
                return self._step()
            self._recorded = self._record()
        graph, logits = self._recorded
        graph.replay()
        return logits.clone()  # the next replay writes to the same memory

    def _record(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The step as a graph, and where that leaves its logits."""
        side: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # Kernels are loaded and chosen at their first call, which must not happen while recording. This
            # one writes to the cache only what the replay writes there again: this token's keys and values.
            self._step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._step()
        return graph, logits

    def _step(self) -> Tensor:
        """Nothing in here may depend on a number that the host knows but of the model, the capacity and the span."""
        x = self.model.embed_tokens(self._token)
        if self.model.positions is not None:
            x = x + self.model.positions(self._position)
        x = self.model.through(x, self._places(), self._slot)
        return self.model.unembed(x[0]).float()

    def _places(self) -> tuple[Place, Place]:
        """As of ``Transformer.places``; a window is in the mask."""
        config = self.model.config
        full = Place(self._gathered(config.rope), None, self._mask(self._full <= self._position))
        if config.sliding_window is None:
            return full, full
        local = full.rope if config.local_rope is None else self._gathered(config.local_rope)
        seen = (self._windowed <= self._position) & (self._windowed > self._position - config.sliding_window)
        return full, Place(local, None, self._mask(seen))

    def _gathered(self, rope: RopeConfig | None) -> tuple[Tensor, Tensor] | None:
        if rope is None:
            return None
        cos, signed_sin = self._angles[rope]
        return cos.index_select(0, self._position), signed_sin.index_select(0, self._position)

    def _mask(self, seen: Tensor) -> Tensor:
        """``seen`` in the form that attention takes without converting it in every layer."""
        if self.model.config.attention_softcap is not None:
            return seen
        return torch.zeros_like(seen, dtype=self.model.dtype).masked_fill_(~seen, float("-inf"))
