"""GLM-4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.fields import Defaults, common, field
from llmcli.model.families.rules import Family, Names


def parse_glm4(raw: Mapping[str, Any]) -> ModelConfig:
    """GLM-4-0414 (Zhipu AI 2025): norms before and after attention and MLP, half of each head rotated.

    config.json -> ModelConfig, with the defaults of transformers' Glm4Config.
    """
    ends = [151329, 151336, 151338]
    shared = common(
        raw if raw.get("eos_token_id") is not None else {**raw, "eos_token_id": ends},
        Defaults(
            model_type="glm4",
            vocab_size=151552,
            hidden_size=4096,
            intermediate_size=13696,
            num_hidden_layers=40,
            num_attention_heads=32,
            num_key_value_heads=2,
            head_dim=128,
            max_position_embeddings=131072,
            norm_eps=1.5625e-7,
            partial_rotary_factor=0.5,
        ),
    )
    return ModelConfig(**shared, post_norm=True, qkv_bias=field(raw, "attention_bias", True))


GLM4_NAMES = Names(
    attn_post_norm="post_self_attn_layernorm",
    mlp_norm="post_attention_layernorm",
    mlp_post_norm="post_mlp_layernorm",
    up=("mlp.gate_up_proj",),
    interleaved=True,
)
GLM4 = Family("glm4", parse_glm4, GLM4_NAMES.rules, tokenizer_class="")
