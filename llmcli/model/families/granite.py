"""Granite 3 (IBM 2024): a Llama with fixed multipliers on embedding, scores, residual and logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.common import common
from llmcli.model.families.fields import field, wrong
from llmcli.model.families.names import Names
from llmcli.model.families.rules import Family


def parse(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig, with the defaults of transformers' GraniteConfig."""
    shared = common(
        raw,
        model_type="granite",
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
    divisor = field(raw, "logits_scaling", 1.0)
    if not divisor > 0:
        raise wrong("logits_scaling", divisor, "a number above 0")
    return ModelConfig(
        **shared,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=field(raw, "mlp_bias", False),
        attention_scale=field(raw, "attention_multiplier", 1.0),
        embedding_scale=field(raw, "embedding_multiplier", 1.0),
        residual_scale=field(raw, "residual_multiplier", 1.0),
        logit_scale=1.0 / divisor,
    )


FAMILY = Family("granite", parse, Names().rules)
