"""What a model takes, told before it is opened: bytes of its weights and of its KV cache, by shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llmcli.model.cache import SPARE
from llmcli.model.config import ModelConfig
from llmcli.model.layers import Embedding, Linear
from llmcli.model.transformer import GPU_BLOCK, Transformer
from llmcli.storage.quantize import BLOCK, Kind, matrices, rounded_parts
from llmcli.storage.rounding import GROUP

SCALE = 4  # bytes of an fp32 scale


def empty_model(config: ModelConfig) -> Transformer:
    """The model's modules with parameters that have a shape and no memory."""
    with torch.device("meta"):
        return Transformer(config)


def weight_bytes(model: Transformer, dtype: torch.dtype, kind: Kind | None) -> dict[str, int]:
    """Bytes of each parameter as it would be held in ``dtype``, or rounded as ``kind`` says; one that is tied once."""
    sizes = {name: parameter.numel() * dtype.itemsize for name, parameter in model.named_parameters()}
    if kind is not None:
        for name, module in matrices(model):
            sizes[f"{name}.weight"] = _rounded_bytes(module, kind, dtype)
    return sizes


def _rounded_bytes(module: Linear | Embedding, kind: Kind, dtype: torch.dtype) -> int:
    """Of a matrix as ``quantize`` keeps it: numbers and scales; in 4 bits factors too, and the kernel's own scales."""
    rows, columns = module.weight.shape
    if "factors" not in rounded_parts(module, kind):
        return rows * columns + rows * SCALE
    padded = -(-rows // BLOCK) * BLOCK
    groups = padded * columns // GROUP
    return padded * columns // 2 + groups + rows * SCALE + groups * 2 * dtype.itemsize


@dataclass(frozen=True)
class CacheBytes:
    """Bytes of a KV cache. Windowed layers stop growing, at ``windowed`` together; all others add ``per_token``.

    ``needed`` is what the keys and values take that are still seen behind so many tokens, ``most`` what the buffers
    can come to: they grow by half when full, and hold a whole chunk of the prompt at once.
    """

    per_token: int
    windowed: int
    needed: int
    most: int


def cache_bytes(
    config: ModelConfig, dtype: torch.dtype, tokens: int, *, chunk: int, device: torch.device
) -> CacheBytes:
    """For a text of ``tokens``, read ``chunk`` at a time."""
    position = 2 * config.kv_size * dtype.itemsize  # a key and a value in one layer
    windowed = sum(config.layer_type(layer) == "sliding_attention" for layer in range(config.num_hidden_layers))
    full, window = config.num_hidden_layers - windowed, config.sliding_window or 0
    held = min(tokens, window - 1 + SPARE + chunk)

    def room(positions: int) -> int:
        block = GPU_BLOCK if device.type == "cuda" else 1
        return -(-(positions + positions // 2) // block) * block

    return CacheBytes(
        per_token=full * position,
        windowed=windowed * position * window,
        needed=position * (full * tokens + windowed * min(tokens, window)),
        most=position * (full * room(tokens) + windowed * room(held)),
    )
