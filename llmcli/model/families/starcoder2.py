"""StarCoder2 (Lozhkov et al. 2024): GPT-2's LayerNorm and biases, Llama's rotary positions and grouped heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.common import common
from llmcli.model.families.fields import field, optional
from llmcli.model.families.mistral import windowed
from llmcli.model.families.names import Names
from llmcli.model.families.rules import Family


def parse(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig, with the defaults of transformers' Starcoder2Config."""
    shared = common(
        raw,
        model_type="starcoder2",
        vocab_size=49152,
        hidden_size=3072,
        intermediate_size=12288,
        num_hidden_layers=30,
        num_attention_heads=24,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        norm_eps=1e-5,
        norm_eps_key="norm_epsilon",
        hidden_act="gelu_pytorch_tanh",
        bos_token_id=50256,
        eos_token_id=50256,
    )
    bias = field(raw, "use_bias", True)
    return ModelConfig(
        **shared,
        **windowed(optional(raw, "sliding_window", None, int), shared["num_hidden_layers"]),
        norm="layer",
        norm_bias=True,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        gated_mlp=False,
    )


FAMILY = Family("starcoder2", parse, Names(up=("mlp.c_fc",), down="mlp.c_proj").rules)
