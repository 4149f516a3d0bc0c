"""Llama 4: the text model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import ModelConfig, MoeConfig
from llmcli.model.families.fields import Defaults, common, field, layer_types, optional, wrong
from llmcli.model.families.llama import unrotated
from llmcli.model.families.rules import Family, Names


def parse_llama4(raw: Mapping[str, Any]) -> ModelConfig:
    """Llama 4 (Meta 2025): one expert a token and one for all, and every fourth layer without positions.

    Layers with positions see only the query's chunk of ``attention_chunk_size`` positions; from ``floor_scale`` on,
    layers without them scale their queries.

    config.json -> ModelConfig, with the defaults of transformers' Llama4TextConfig.
    """
    shared = common(
        raw,
        Defaults(
            model_type="llama4_text",
            vocab_size=202048,
            hidden_size=5120,
            intermediate_size=8192,
            num_hidden_layers=48,
            num_attention_heads=40,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=131072,
            norm_eps=1e-5,
            rope_theta=500000.0,
            bos_token_id=1,
            eos_token_id=2,
        ),
    )
    layers, width = shared["num_hidden_layers"], shared["intermediate_size"]
    chunk = optional(raw, "attention_chunk_size", 8192, int)
    rotated = frozenset(range(layers)) - unrotated(raw, layers)
    tuned = raw.get("attn_temperature_tuning", True) not in (False, 0)  # a number in older files
    shared["intermediate_size"] = field(raw, "intermediate_size_mlp", 16384)
    moe = MoeConfig(
        num_experts=field(raw, "num_local_experts", 16),
        num_experts_per_tok=field(raw, "num_experts_per_tok", 1),
        intermediate_size=width,
        normalize=False,
        dense_layers=frozenset(range(layers)) - _routed(raw, layers),
        shared_intermediate_size=width,
        scores="sigmoid",
        weighs_inputs=True,
    )
    bias = field(raw, "attention_bias", False)
    return ModelConfig(
        **shared,
        moe=moe,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="unweighted" if field(raw, "use_qk_norm", True) else None,
        qk_norm_after_rope=True,
        layers_without_rope=unrotated(raw, layers),
        sliding_window=chunk,
        attention_chunks=chunk is not None,
        layer_types=layer_types(raw, layers, lambda layer: chunk is not None and layer in rotated, "chunked_attention"),
        query_scale_beta=field(raw, "attn_scale", 0.1) if tuned else 0.0,
        floor_scale=field(raw, "floor_scale", 8192),
    )


def _routed(raw: Mapping[str, Any], layers: int) -> frozenset[int]:
    """The layers with experts: ``moe_layers``, or every ``interleave_moe_layer_step``-th."""
    listed = raw.get("moe_layers")
    if listed is None:
        step = max(field(raw, "interleave_moe_layer_step", 1), 1)
        return frozenset(range(step - 1, layers, step))
    if not isinstance(listed, list) or any(type(layer) is not int for layer in listed):
        raise wrong("moe_layers", listed, "a list of layers")
    return frozenset(listed)


NAMES = Names(
    up=("feed_forward.gate_proj", "feed_forward.up_proj"),
    down="feed_forward.down_proj",
    router="feed_forward.router",
    expert="feed_forward.experts.{}.",
    expert_up=("gate_up_proj",),
    expert_transposed=True,
    shared_up=("feed_forward.shared_expert.gate_proj", "feed_forward.shared_expert.up_proj"),
    shared_down="feed_forward.shared_expert.down_proj",
    interleaved=True,
)
LLAMA4 = Family("llama4_text", parse_llama4, NAMES.rules, stacks_experts=True)
