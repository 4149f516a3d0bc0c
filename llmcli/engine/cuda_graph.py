"""Decoding on a GPU: the step of one token, recorded once as a CUDA graph and replayed for every token.

A step is a few hundred small kernels, which Python launches more slowly than a GPU runs them; a graph launches all
its kernels at once. A graph is always the same kernels over the same memory, so everything that differs between tokens
is read from memory on the device: the token and its position, which determines the angles, the mask and the index of
the keys in the cache. Attention covers all positions that the cache has room for; those not yet written are masked.

Source: "CUDA Graphs" in PyTorch's notes on CUDA semantics; the static cache of gpt-fast (PyTorch 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmcli.engine.attention import kernel_dtype
from llmcli.engine.transformer import EngineTransformer
from llmcli.model import positions
from llmcli.model.cache import KVCache, StaticCache
from llmcli.model.config import RopeConfig
from llmcli.model.positions import Rotation
from llmcli.model.transformer import Transformer


def replays(model: Transformer) -> bool:
    """Whether ``decode`` is the fastest way to run this model's steps: on a GPU, except for some models.

    The host must read which experts a router chose, so a mixture of experts is not one fixed sequence of kernels.
    Recurrent layers replace their state, so they are not always over the same memory. Hooks depend on the position.
    """
    return (
        model.device.type == "cuda"
        and model.config.moe is None
        and model.config.mixer is None
        and isinstance(model, EngineTransformer)
        and model.complete
        and model.hooks is None
    )


@torch.inference_mode()
def decode(model: Transformer, token: int, cache: KVCache) -> Tensor:
    """Feed one token to a model with the cache of one text; return the logits after it, fp32 [1, V].

    They are those of ``model(ids, cache)`` up to rounding. The recorded step is kept in the cache; while the cache is
    in use, the model's parameters must not move. Raises LlmcliError if the position is beyond the learned ones.
    """
    assert model.config.moe is None, "experts are chosen on the host"
    model.check_positions(cache.length + 1)
    span = model.fix_span(cache, 1)
    cache.reserve(1)
    graph = cache.prepared
    if not isinstance(graph, DecodeGraph) or graph.span != span:
        cache.prepared = graph = DecodeGraph(model, cache)
    logits = graph.run(token, cache.length)
    cache.advance(1)
    return logits


class DecodeGraph:
    """The step of one token over a cache's current buffers, whose keys are rotated by the angles of ``span``.

    On a GPU it is recorded when it first runs; on other devices the same operations run one at a time.
    """

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        self.model, self.span = model, cache.span
        # What differs between tokens: the token, its position, and its index in the buffers of windowed layers.
        self._inputs = torch.zeros(3, dtype=torch.long, device=model.device)
        self._token, self._position = self._inputs[:1].view(1, 1), self._inputs[1:2]
        self._cache = StaticCache(cache, (self._position, self._inputs[2:]))
        full, windowed = (cache.room(windowed=windowed) for windowed in (False, True))
        self._first = windowed.start
        full_keys, windowed_keys = (  # the positions of the keys, [1, room]
            torch.arange(room.start, room.stop, device=model.device).unsqueeze(0) for room in (full, windowed)
        )
        self._keys = (full_keys, windowed_keys)
        self._angles = {
            rope: model.rotation(rope, 0, max(full.stop, windowed.stop), cache.span)
            for rope in (model.config.rope, model.config.local_rope)
            if rope is not None
        }
        self._recorded: tuple[torch.cuda.CUDAGraph, Tensor] | None = None

    def run(self, token: int, position: int) -> Tensor:
        """The logits after ``token`` at ``position``, which is the cache's length: fp32 [1, V]."""
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
        """Record the step; return the graph and the tensor that it writes its logits to."""
        side: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # Kernels are loaded and selected at their first call, which must not happen during recording. This step
            # writes only this token's keys and values to the cache, which the replay writes again.
            self._step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._step()
        return graph, logits

    def _step(self) -> Tensor:
        """The operations of a step; the only numbers from the host are the model's, the capacity and the span."""
        model = self.model
        x = model.embed_tokens(self._token)
        if model.positions is not None:
            x = x + model.positions(self._position)
        dtype = kernel_dtype(self._cache.dtype, model.device)
        placements = positions.single(model.config, self._position, self._keys, dtype, self._rotation)
        x = model.run_blocks(self._token, x, placements, self._cache)
        return model.unembed(x[0])

    def _rotation(self, rope: RopeConfig) -> Rotation:
        """The rotation of the token's position, read on the device: [1, R] each."""
        cos, signed_sin = self._angles[rope]
        return cos.index_select(0, self._position), signed_sin.index_select(0, self._position)
