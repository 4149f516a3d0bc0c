"""Hunyuan, dense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.fields import Defaults, common, field
from llmcli.model.families.rules import Family, Names


def parse_hunyuan(raw: Mapping[str, Any]) -> ModelConfig:
    """Hunyuan (Tencent 2025), dense: a Llama that normalizes queries and keys after their rotation.

    config.json -> ModelConfig, with the defaults of transformers' HunYuanDenseV1Config.
    """
    shared = common(
        _with_theta(raw),
        Defaults(
            model_type="hunyuan_v1_dense",
            vocab_size=290943,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=2048,
            norm_eps=1e-5,
            bos_token_id=1,
            eos_token_id=2,
        ),
    )
    bias = field(raw, "attention_bias", False)
    return ModelConfig(**shared, qk_norm="head", qk_norm_after_rope=True, qkv_bias=bias, out_bias=bias)


def _with_theta(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json in which a fixed ``alpha`` is part of ``rope_theta``: published files call this scaling "dynamic"."""
    scaling = raw.get("rope_scaling") or raw.get("rope_parameters")
    if not isinstance(scaling, Mapping) or scaling.get("rope_type", scaling.get("type")) != "dynamic":
        return raw
    alpha = field(scaling, "alpha", 0.0)
    heads = max(field(raw, "num_attention_heads", 32), 1)
    size = field(raw, "head_dim", field(raw, "hidden_size", 4096) // heads)
    theta = field(scaling, "rope_theta", field(raw, "rope_theta", 10000.0))
    if not (0 < alpha < 1e9 and size > 2 and 0 < theta < 1e12):
        return raw
    return {**raw, "rope_scaling": {"rope_type": "default", "rope_theta": theta * alpha ** (size / (size - 2))}}


HUNYUAN_NAMES = Names(q_norm="self_attn.query_layernorm", k_norm="self_attn.key_layernorm")
HUNYUAN = Family("hunyuan_v1_dense", parse_hunyuan, HUNYUAN_NAMES.rules)
