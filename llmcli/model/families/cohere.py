"""Cohere's Command R, Command R7B and Command A."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.fields import (
    Defaults,
    common,
    field,
    layer_types,
    optional,
)
from llmcli.model.families.rules import Family, Names


def parse_cohere(raw: Mapping[str, Any]) -> ModelConfig:
    """Command R (Cohere 2024): attention and MLP in parallel after one norm without bias, scaled logits.

    config.json -> ModelConfig, with the defaults of transformers' CohereConfig.
    """
    shared = common(
        raw,
        Defaults(
            model_type="cohere",
            vocab_size=256000,
            hidden_size=8192,
            intermediate_size=22528,
            num_hidden_layers=40,
            num_attention_heads=64,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            norm_eps=1e-5,
            norm_eps_key="layer_norm_eps",
            rope_theta=500000.0,
            bos_token_id=5,
            eos_token_id=255001,
        ),
    )
    bias = field(raw, "attention_bias", False)
    return ModelConfig(
        **shared,
        norm="layer",
        qk_norm="heads" if field(raw, "use_qk_norm", False) else None,
        parallel_residual=True,
        shared_norm=True,
        qkv_bias=bias,
        out_bias=bias,
        logit_scale=field(raw, "logit_scale", 0.0625),
    )


COHERE = Family("cohere", parse_cohere, Names(interleaved=True).rules, tokenizer_class="CohereTokenizer")


def parse_cohere2(raw: Mapping[str, Any]) -> ModelConfig:
    """Command R7B and Command A (Cohere 2024): Command R with windows, and no positions in the layers without one.

    config.json -> ModelConfig, with the defaults of transformers' Cohere2Config.
    """
    shared = common(
        {**raw, "head_dim": None},
        Defaults(
            model_type="cohere2",
            vocab_size=256000,
            hidden_size=8192,
            intermediate_size=22528,
            num_hidden_layers=40,
            num_attention_heads=64,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            norm_eps=1e-5,
            norm_eps_key="layer_norm_eps",
            bos_token_id=5,
            eos_token_id=255001,
        ),
    )
    pattern = field(raw, "sliding_window_pattern", 4)
    types = layer_types(raw, shared["num_hidden_layers"], lambda layer: (layer + 1) % max(pattern, 1) != 0)
    bias = field(raw, "attention_bias", False)
    return ModelConfig(
        **shared,
        norm="layer",
        parallel_residual=True,
        shared_norm=True,
        qkv_bias=bias,
        out_bias=bias,
        logit_scale=field(raw, "logit_scale", 0.0625),
        sliding_window=optional(raw, "sliding_window", 4096, int),
        layer_types=types,
        layers_without_rope=frozenset(n for n, kind in enumerate(types) if kind == "full_attention"),
    )


COHERE2 = Family("cohere2", parse_cohere2, Names(interleaved=True).rules, tokenizer_class="CohereTokenizer")
