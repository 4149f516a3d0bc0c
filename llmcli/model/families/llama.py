"""Llama (Touvron et al. 2023): pre-RMSNorm, rotary positions, grouped heads, a SiLU-gated MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.common import common
from llmcli.model.families.fields import described_ids, field
from llmcli.model.families.names import Names
from llmcli.model.families.rules import Family


def parse(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig, with the defaults of transformers' LlamaConfig."""
    shared = common(
        raw,
        model_type="llama",
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
    )
    bias = field(raw, "attention_bias", False)
    return ModelConfig(**shared, qkv_bias=bias, out_bias=bias, mlp_bias=field(raw, "mlp_bias", False))


def describe(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a Llama without rope scaling (such as we train), as transformers reads it."""
    assert config.rope is not None
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "rms_norm_eps": config.norm_eps,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "hidden_act": config.activation,
        "rope_theta": config.rope.theta,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": described_ids(config.eos_token_ids),
    }


FAMILY = Family("llama", parse, Names().rules, dropped=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",))
