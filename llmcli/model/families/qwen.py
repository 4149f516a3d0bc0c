"""Qwen 2, 2.5 and 3, dense and with experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import ModelConfig, MoeConfig
from llmcli.model.families.fields import (
    Defaults,
    common,
    field,
    layer_types,
    num_experts,
    optional,
    windowed,
    wrong,
)
from llmcli.model.families.rules import Family, Names


def parse_qwen2(raw: Mapping[str, Any]) -> ModelConfig:
    """Qwen 2 and 2.5 (Yang et al. 2024): a Llama with biases on q, k and v, and optional windows in its upper layers.

    config.json -> ModelConfig, with the defaults of transformers' Qwen2Config.
    """
    shared = common(
        raw,
        Defaults(
            model_type="qwen2",
            vocab_size=151936,
            hidden_size=4096,
            intermediate_size=22016,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            max_position_embeddings=32768,
        ),
    )
    return ModelConfig(**shared, **upper_windows(raw, shared["num_hidden_layers"]), qkv_bias=True)


def upper_windows(raw: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """``ModelConfig``'s arguments for windows from layer ``max_window_layers`` up, if ``use_sliding_window``."""
    if not field(raw, "use_sliding_window", False):
        return {}
    first = field(raw, "max_window_layers", 28)
    window = optional(raw, "sliding_window", 4096, int)
    types = layer_types(raw, layers, lambda layer: window is not None and layer >= first)
    return {"sliding_window": window, "layer_types": types}


QWEN2 = Family("qwen2", parse_qwen2, Names().rules, tokenizer_class="Qwen2Tokenizer")


def parse_qwen3(raw: Mapping[str, Any]) -> ModelConfig:
    """Qwen 3 (Yang et al. 2025): Qwen 2 with normalized query and key heads instead of the biases.

    config.json -> ModelConfig, with the defaults of transformers' Qwen3Config.
    """
    shared = common(
        raw,
        Defaults(
            model_type="qwen3",
            vocab_size=151936,
            hidden_size=4096,
            intermediate_size=22016,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            head_dim=128,
            max_position_embeddings=32768,
        ),
    )
    bias = field(raw, "attention_bias", False)
    windows = upper_windows(raw, shared["num_hidden_layers"])
    return ModelConfig(**shared, **windows, qk_norm="head", qkv_bias=bias, out_bias=bias)


QWEN3 = Family("qwen3", parse_qwen3, Names().rules, tokenizer_class="Qwen2Tokenizer")


def parse_qwen3_moe(raw: Mapping[str, Any]) -> ModelConfig:
    """Qwen 3 MoE (Yang et al. 2025): Qwen 3 with many small experts in all layers except the listed ones.

    config.json -> ModelConfig, with the defaults of transformers' Qwen3MoeConfig.
    """
    shared = common(
        raw,
        Defaults(
            model_type="qwen3_moe",
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=6144,
            num_hidden_layers=24,
            num_attention_heads=32,
            num_key_value_heads=4,
            max_position_embeddings=32768,
        ),
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
    """Layers with an ordinary MLP: ``mlp_only_layers``, and all except every ``decoder_sparse_step``-th."""
    listed = raw.get("mlp_only_layers") or []
    if not isinstance(listed, list) or any(type(layer) is not int for layer in listed):
        raise wrong("mlp_only_layers", listed, "a list of layers")
    step = max(field(raw, "decoder_sparse_step", 1), 1)
    return frozenset(listed) | {layer for layer in range(layers) if (layer + 1) % step}


QWEN3_MOE = Family("qwen3_moe", parse_qwen3_moe, Names().rules, tokenizer_class="Qwen2Tokenizer")


def parse_qwen2_moe(raw: Mapping[str, Any]) -> ModelConfig:
    """Qwen 1.5 and 2 MoE (Qwen Team 2024): Qwen 2 with small experts, and a gated one that serves every token.

    config.json -> ModelConfig, with the defaults of transformers' Qwen2MoeConfig.
    """
    shared = common(
        raw,
        Defaults(
            model_type="qwen2_moe",
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=24,
            num_attention_heads=16,
            num_key_value_heads=16,
            max_position_embeddings=32768,
        ),
    )
    layers = shared["num_hidden_layers"]
    moe = MoeConfig(
        num_experts=num_experts(raw, 60),
        num_experts_per_tok=field(raw, "num_experts_per_tok", 4),
        intermediate_size=field(raw, "moe_intermediate_size", 1408),
        normalize=field(raw, "norm_topk_prob", False),
        dense_layers=dense_layers(raw, layers),
        shared_intermediate_size=field(raw, "shared_expert_intermediate_size", 5632),
        shared_gate=True,
    )
    bias = field(raw, "qkv_bias", True)
    return ModelConfig(**shared, **_lower_windows(raw, layers), moe=moe, qkv_bias=bias)


def _lower_windows(raw: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """``ModelConfig``'s arguments for windows in every second layer below ``max_window_layers``, if there are any."""
    if not field(raw, "use_sliding_window", False):
        return {}
    last, window = field(raw, "max_window_layers", 28), optional(raw, "sliding_window", 4096, int)
    types = layer_types(raw, layers, lambda layer: window is not None and layer % 2 == 0 and layer < last)
    return {"sliding_window": window, "layer_types": types}


QWEN2_MOE = Family("qwen2_moe", parse_qwen2_moe, Names().rules, tokenizer_class="Qwen2Tokenizer")
