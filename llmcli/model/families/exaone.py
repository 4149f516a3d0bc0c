"""EXAONE 4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.fields import Defaults, common, layer_types, optional, wrong
from llmcli.model.families.rules import Family, Names


def parse_exaone4(raw: Mapping[str, Any]) -> ModelConfig:
    """EXAONE 4 (LG AI Research 2025): only post-norms, normalized heads, layers without a window have no positions.

    config.json -> ModelConfig, with the defaults of transformers' Exaone4Config.
    """
    shared = common(
        raw,
        Defaults(
            model_type="exaone4",
            vocab_size=102400,
            hidden_size=4096,
            intermediate_size=16384,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            max_position_embeddings=2048,
            norm_eps=1e-5,
            bos_token_id=0,
            eos_token_id=2,
        ),
    )
    layers, window = shared["num_hidden_layers"], optional(raw, "sliding_window", 4096, int)
    pattern = "G" if window is None else _pattern(raw)
    types = layer_types(raw, layers, lambda layer: pattern[layer % len(pattern)] == "L")
    full = frozenset(layer for layer, kind in enumerate(types) if kind == "full_attention")
    return ModelConfig(
        **shared,
        pre_norm=False,
        post_norm=True,
        qk_norm="head",
        sliding_window=window,
        layer_types=types,
        layers_without_rope=frozenset() if window is None else full,
    )


def _pattern(raw: Mapping[str, Any]) -> str:
    """Which layers have a window, "L", or not, "G", as repeated: a string, or the number of layers with one "G"."""
    value = raw.get("sliding_window_pattern", 4)
    if type(value) is int and 1 <= value <= 512:
        return "L" * (value - 1) + "G"
    if not isinstance(value, str) or not value or set(value) - {"L", "G"}:
        raise wrong("sliding_window_pattern", value, "a number of layers or a string of L and G")
    return value


EXAONE4_NAMES = Names(attn_post_norm="post_attention_layernorm", mlp_post_norm="post_feedforward_layernorm")
EXAONE4 = Family("exaone4", parse_exaone4, EXAONE4_NAMES.rules)
