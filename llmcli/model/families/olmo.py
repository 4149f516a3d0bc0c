"""OLMo 1 to 3, and OLMoE."""

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
    rope,
)
from llmcli.model.families.rules import Family, Names


def parse_olmo(raw: Mapping[str, Any]) -> ModelConfig:
    """OLMo (Groeneveld et al. 2024): a Llama whose LayerNorms have neither weights nor biases.

    config.json -> ModelConfig, with the defaults of transformers' OlmoConfig.
    """
    shared = common(
        raw,
        Defaults(
            model_type="olmo",
            vocab_size=50304,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=2048,
            eos_token_id=50279,
        ),
    )
    bias = field(raw, "attention_bias", False)
    return ModelConfig(
        **shared | {"norm_eps": 1e-5},  # whatever the file says
        norm="layer",
        norm_weight=False,
        qkv_bias=bias,
        out_bias=bias,
        qkv_limit=optional(raw, "clip_qkv", None, float),
    )


OLMO = Family("olmo", parse_olmo, Names().rules, tokenizer_class="GPTNeoXTokenizer")


def parse_olmo2(raw: Mapping[str, Any]) -> ModelConfig:
    """OLMo 2 (OLMo Team 2025): only post-norms, queries and keys normalized over all heads.

    config.json -> ModelConfig, with the defaults of transformers' Olmo2Config.
    """
    shared = common(
        raw,
        Defaults(
            model_type="olmo2",
            vocab_size=50304,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=2048,
            norm_eps=1e-5,
            eos_token_id=50279,
        ),
    )
    bias = field(raw, "attention_bias", False)
    return ModelConfig(**shared, pre_norm=False, post_norm=True, qk_norm="full", qkv_bias=bias, out_bias=bias)


OLMO2_NAMES = Names(attn_post_norm="post_attention_layernorm", mlp_post_norm="post_feedforward_layernorm")
OLMO2 = Family("olmo2", parse_olmo2, OLMO2_NAMES.rules, tokenizer_class="")


def parse_olmo3(raw: Mapping[str, Any]) -> ModelConfig:
    """OLMo 3 (OLMo Team 2025): OLMo 2 with three layers in four windowed, whose angles are never scaled.

    config.json -> ModelConfig, with the defaults of transformers' Olmo3Config.
    """
    theta = 500000.0
    shared = common(
        raw,
        Defaults(
            model_type="olmo3",
            vocab_size=50304,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=2048,
            norm_eps=1e-5,
            rope_theta=theta,
            eos_token_id=50279,
        ),
    )
    nested = raw.get("rope_parameters")
    local = nested.get("sliding_attention") if isinstance(nested, Mapping) else None
    bias = field(raw, "attention_bias", False)
    return ModelConfig(
        **shared,
        local_rope=rope({"rope_parameters": local}, shared["max_position_embeddings"], theta, None),
        sliding_window=optional(raw, "sliding_window", 4096, int),
        layer_types=layer_types(raw, shared["num_hidden_layers"], lambda layer: (layer + 1) % 4 != 0),
        pre_norm=False,
        post_norm=True,
        qk_norm="full",
        qkv_bias=bias,
        out_bias=bias,
    )


OLMO3 = Family("olmo3", parse_olmo3, OLMO2_NAMES.rules, tokenizer_class="")


def parse_olmoe(raw: Mapping[str, Any]) -> ModelConfig:
    """OLMoE (Muennighoff et al. 2024): a mixture of experts in every layer, queries and keys normalized over all heads.

    config.json -> ModelConfig, with the defaults of transformers' OlmoeConfig.
    """
    shared = common(
        raw,
        Defaults(
            model_type="olmoe",
            vocab_size=50304,
            hidden_size=2048,
            intermediate_size=2048,
            num_hidden_layers=16,
            num_attention_heads=16,
            max_position_embeddings=4096,
            norm_eps=1e-5,
            eos_token_id=50279,
        ),
    )
    moe = MoeConfig(
        num_experts=num_experts(raw, 64),
        num_experts_per_tok=field(raw, "num_experts_per_tok", 8),
        intermediate_size=shared["intermediate_size"],
        normalize=field(raw, "norm_topk_prob", False),
    )
    bias = field(raw, "attention_bias", False)
    limit = optional(raw, "clip_qkv", None, float)
    return ModelConfig(**shared, moe=moe, qk_norm="full", qkv_bias=bias, out_bias=bias, qkv_limit=limit)


OLMOE = Family("olmoe", parse_olmoe, Names().rules, tokenizer_class="GPTNeoXTokenizer")
