"""Qwen 3 (Yang et al. 2025): Qwen 2 with normed query and key heads in place of the biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.common import common
from llmcli.model.families.fields import field
from llmcli.model.families.names import Names
from llmcli.model.families.qwen2 import upper_windows
from llmcli.model.families.rules import Family


def parse(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig, with the defaults of transformers' Qwen3Config."""
    shared = common(
        raw,
        model_type="qwen3",
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=22016,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=128,
        max_position_embeddings=32768,
    )
    bias = field(raw, "attention_bias", False)
    windows = upper_windows(raw, shared["num_hidden_layers"])
    return ModelConfig(**shared, **windows, qk_norm="head", qkv_bias=bias, out_bias=bias)


FAMILY = Family("qwen3", parse, Names().rules)
