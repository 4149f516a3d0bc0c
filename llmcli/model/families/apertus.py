"""Apertus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.fields import Defaults, common, field
from llmcli.model.families.rules import Family, Names

SCALING = {
    "rope_type": "llama3",
    "rope_theta": 12000000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


def parse_apertus(raw: Mapping[str, Any]) -> ModelConfig:
    """Apertus (Swiss AI 2025): normalized heads, and an ungated MLP whose activation is learned.

    config.json -> ModelConfig, with the defaults of transformers' ApertusConfig.
    """
    shared = common(
        {**raw, "rope_scaling": raw.get("rope_scaling") or raw.get("rope_parameters") or SCALING},
        Defaults(
            model_type="apertus",
            vocab_size=131072,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=65536,
            norm_eps=1e-5,
            hidden_act="xielu",
            rope_theta=12000000.0,
            bos_token_id=1,
            eos_token_id=2,
        ),
    )
    bias = field(raw, "attention_bias", False)
    return ModelConfig(**shared, gated_mlp=False, qk_norm="head", qkv_bias=bias, out_bias=bias)


NAMES = Names(
    attn_norm="attention_layernorm",
    mlp_norm="feedforward_layernorm",
    up=("mlp.up_proj",),
    curve=("mlp.act_fn.alpha_p", "mlp.act_fn.alpha_n"),
)
APERTUS = Family(
    "apertus",
    parse_apertus,
    NAMES.rules,
    dropped=(r".*\.act_fn\.(beta|eps)",),
    constants=(("model.layers.{}.mlp.act_fn.beta", 0.5), ("model.layers.{}.mlp.act_fn.eps", -1e-6)),
)
