"""OLMo 2 (OLMo Team 2025): norms behind attention and MLP only, queries and keys normed over all heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.common import common
from llmcli.model.families.fields import field
from llmcli.model.families.names import Names
from llmcli.model.families.rules import Family


def parse(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig, with the defaults of transformers' Olmo2Config."""
    shared = common(
        raw,
        model_type="olmo2",
        vocab_size=50304,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=2048,
        norm_eps=1e-5,
        eos_token_id=50279,
    )
    bias = field(raw, "attention_bias", False)
    return ModelConfig(**shared, pre_norm=False, post_norm=True, qk_norm="full", qkv_bias=bias, out_bias=bias)


NAMES = Names(attn_post_norm="post_attention_layernorm", mlp_post_norm="post_feedforward_layernorm")
FAMILY = Family("olmo2", parse, NAMES.rules)
