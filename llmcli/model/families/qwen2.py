"""Qwen 2 and 2.5 (Yang et al. 2024): a Llama with biases on q, k and v, and windows in its upper layers if asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.common import common
from llmcli.model.families.fields import field, layer_types, optional
from llmcli.model.families.names import Names
from llmcli.model.families.rules import Family


def parse(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig, with the defaults of transformers' Qwen2Config."""
    shared = common(
        raw,
        model_type="qwen2",
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=22016,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=32768,
    )
    return ModelConfig(**shared, **upper_windows(raw, shared["num_hidden_layers"]), qkv_bias=True)


def upper_windows(raw: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """``ModelConfig``'s arguments for windows from layer ``max_window_layers`` on, if ``use_sliding_window``."""
    if not field(raw, "use_sliding_window", False):
        return {}
    first = field(raw, "max_window_layers", 28)
    window = optional(raw, "sliding_window", 4096, int)
    types = layer_types(raw, layers, lambda layer: window is not None and layer >= first)
    return {"sliding_window": window, "layer_types": types}


FAMILY = Family("qwen2", parse, Names().rules)
