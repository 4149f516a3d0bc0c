"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini (Abdin et al. 2024): a Llama with stacked matrices, and LongRoPE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.common import common
from llmcli.model.families.fields import optional
from llmcli.model.families.mistral import windowed
from llmcli.model.families.names import Names
from llmcli.model.families.rules import Family


def parse(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig, with the defaults of transformers' Phi3Config."""
    shared = common(
        with_longrope(raw),
        model_type="phi3",
        vocab_size=32064,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=4096,
        norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=32000,
    )
    window = optional(raw, "sliding_window", None, int)
    return ModelConfig(**shared, **windowed(window, shared["num_hidden_layers"]))


def with_longrope(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Early files call LongRoPE "su" or "yarn"; its original context is 4096 unless they say otherwise."""
    scaling = raw.get("rope_scaling") or raw.get("rope_parameters")
    if not isinstance(scaling, Mapping):
        return raw
    scaling = {"original_max_position_embeddings": 4096, **scaling}
    if scaling.get("rope_type", scaling.get("type")) in ("su", "yarn"):
        scaling["rope_type"] = "longrope"
    return {**raw, "rope_scaling": scaling}


FAMILY = Family("phi3", parse, Names(qkv=("self_attn.qkv_proj",), up=("mlp.gate_up_proj",)).rules)
