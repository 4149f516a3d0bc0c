"""The memory that a model needs, computed from shapes before it is loaded: bytes of its weights and its KV cache."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from llmcli.engine.transformer import GPU_CACHE_BLOCK
from llmcli.model.cache import MAX_SNAPSHOTS, SPARE
from llmcli.model.config import ModelConfig
from llmcli.model.transformer import Transformer
from llmcli.storage.quantize import Quantization, matrices, quantized_shape
from llmcli.storage.tensors import dtype_for


def empty_model(config: ModelConfig) -> Transformer:
    """The model with parameters that have a shape but take no memory."""
    with torch.device("meta"):
        return Transformer(config)


def weight_bytes(model: Transformer, dtype: torch.dtype, quantization: Quantization | None) -> dict[str, int]:
    """Bytes of each parameter in ``dtype``, or quantized if ``quantization`` applies to it; tied ones count once."""
    sizes = {name: each.numel() * dtype_for(name, dtype).itemsize for name, each in model.named_parameters()}
    if quantization is not None:
        for name, module in matrices(model):
            sizes[f"{name}.weight"] = math.prod(quantized_shape(name, module, quantization))
    return sizes


@dataclass(frozen=True)
class CacheBytes:
    """Bytes of a KV cache: full-attention layers grow by ``per_token``, windowed layers up to ``windowed`` in total.

    ``states`` are the states of recurrent layers, whose size is the same for every text. ``needed`` is the size of the
    keys, values and states that later tokens need, ``most`` the largest size of the buffers, which grow by half when
    full and hold a whole chunk of the prompt at once, and of the states with the earlier ones that are kept.
    """

    per_token: int
    windowed: int
    states: int
    needed: int
    most: int


def cache_bytes(
    config: ModelConfig, dtype: torch.dtype, tokens: int, *, chunk: int, device: torch.device
) -> CacheBytes:
    """The cache of a text of ``tokens`` tokens, prefilled ``chunk`` positions at a time."""
    layers = range(config.num_hidden_layers)
    full = windowed = 0  # bytes of a position's keys and values in all layers of a type
    for layer in filter(config.keeps_kv, layers):
        heads, key, value = config.cached(layer)
        position = heads * (key + value) * dtype.itemsize
        local = config.layer_type(layer) == "sliding_attention"
        full, windowed = (full, windowed + position) if local else (full + position, windowed)
    window = config.sliding_window or 0
    shapes = () if config.mixer is None else config.mixer.state_shapes
    states = sum(map(config.has_mixer, layers)) * torch.float32.itemsize * sum(map(math.prod, shapes))
    held = min(tokens, window - 1 + SPARE + chunk)

    def room(positions: int) -> int:
        block = GPU_CACHE_BLOCK if device.type == "cuda" else 1
        return -(-(positions + positions // 2) // block) * block

    return CacheBytes(
        per_token=full,
        windowed=windowed * window,
        states=states,
        needed=full * tokens + windowed * min(tokens, window) + states,
        most=full * room(tokens) + windowed * room(held) + states * (1 + MAX_SNAPSHOTS),
    )
