"""Qwen 3 MoE (Yang et al. 2025): Qwen 3 with many small experts in all layers but the listed ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import ModelConfig, MoeConfig
from llmcli.model.families.common import common
from llmcli.model.families.fields import field, num_experts, optional, wrong
from llmcli.model.families.mistral import windowed
from llmcli.model.families.names import Names
from llmcli.model.families.rules import Family


def parse(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig, with the defaults of transformers' Qwen3MoeConfig."""
    shared = common(
        raw,
        model_type="qwen3_moe",
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=24,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=32768,
    )
    layers = shared["num_hidden_layers"]
    moe = MoeConfig(
        num_experts=num_experts(raw, 128),
        num_experts_per_tok=field(raw, "num_experts_per_tok", 8),
        intermediate_size=field(raw, "moe_intermediate_size", 768),
        normalize=field(raw, "norm_topk_prob", False),
        dense_layers=dense_layers(raw, layers),
    )
    window = optional(raw, "sliding_window", 4096, int) if field(raw, "use_sliding_window", False) else None
    bias = field(raw, "attention_bias", False)
    return ModelConfig(**shared, **windowed(window, layers), moe=moe, qk_norm="head", qkv_bias=bias, out_bias=bias)


def dense_layers(raw: Mapping[str, Any], layers: int) -> frozenset[int]:
    """Layers with an ordinary MLP: ``mlp_only_layers``, and all but every ``decoder_sparse_step``-th."""
    listed = raw.get("mlp_only_layers") or []
    if not isinstance(listed, list) or any(type(layer) is not int for layer in listed):
        raise wrong("mlp_only_layers", listed, "a list of layers")
    step = max(field(raw, "decoder_sparse_step", 1), 1)
    return frozenset(listed) | {layer for layer in range(layers) if (layer + 1) % step}


FAMILY = Family("qwen3_moe", parse, Names().rules)
