"""SmolLM3 (Hugging Face 2025): a Llama in which every fourth layer has no rotary positions (NoPE)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import MOST_LAYERS, ModelConfig
from llmcli.model.families.common import common
from llmcli.model.families.fields import field, layer_types, optional, wrong
from llmcli.model.families.names import Names
from llmcli.model.families.rules import Family


def parse(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig, with the defaults of transformers' SmolLM3Config."""
    shared = common(
        raw,
        model_type="smollm3",
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        rope_theta=2000000.0,
        bos_token_id=128000,
        eos_token_id=128001,
    )
    layers = shared["num_hidden_layers"]
    still = unrotated(raw, layers)
    window = optional(raw, "sliding_window", None, int) if field(raw, "use_sliding_window", False) else None
    types = layer_types(raw, layers, lambda layer: window is not None and layer in still)
    bias = field(raw, "attention_bias", False)
    return ModelConfig(
        **shared,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=field(raw, "mlp_bias", False),
        layers_without_rope=still,
        sliding_window=window,
        layer_types=types,
    )


def unrotated(raw: Mapping[str, Any], layers: int) -> frozenset[int]:
    """Layers without RoPE: those marked 0 in ``no_rope_layers``, else every ``no_rope_layer_interval``-th."""
    marks = raw.get("no_rope_layers")
    if marks is None:
        interval = max(field(raw, "no_rope_layer_interval", 4), 1)
        return frozenset(range(interval - 1, min(layers, MOST_LAYERS), interval))
    if not isinstance(marks, list) or len(marks) != layers:
        raise wrong("no_rope_layers", marks, f"a list of {layers} entries")
    return frozenset(layer for layer, mark in enumerate(marks) if not mark)


FAMILY = Family("smollm3", parse, Names().rules)
