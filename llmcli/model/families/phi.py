"""Phi-1 to Phi-4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.model.config import ModelConfig
from llmcli.model.families.fields import (
    Defaults,
    common,
    field,
    optional,
    windowed,
)
from llmcli.model.families.rules import Family, Names

PHI_NAMES = Names(norm="model.final_layernorm", out="self_attn.dense", up=("mlp.fc1",), down="mlp.fc2")


def parse_phi(raw: Mapping[str, Any]) -> ModelConfig:
    """Phi-1, 1.5 and 2 (Gunasekar et al. 2023): attention and MLP in parallel after one LayerNorm, biases everywhere.

    config.json -> ModelConfig, with the defaults of transformers' PhiConfig.
    Raises LlmcliError if queries and keys are normalized.
    """
    if field(raw, "qk_layernorm", False):
        raise LlmcliError("config.json: qk_layernorm is not supported", "published Phi models do not use it")
    shared = common(
        raw,
        Defaults(
            model_type="phi",
            vocab_size=51200,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=24,
            num_attention_heads=32,
            max_position_embeddings=2048,
            norm_eps=1e-5,
            norm_eps_key="layer_norm_eps",
            hidden_act="gelu_new",
            partial_rotary_factor=0.5,
            bos_token_id=1,
            eos_token_id=2,
        ),
    )
    return ModelConfig(
        **shared,
        norm="layer",
        norm_bias=True,
        parallel_residual=True,
        shared_norm=True,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        head_bias=True,
        gated_mlp=False,
    )


PHI = Family("phi", parse_phi, PHI_NAMES.rules, tokenizer_class="GPT2Tokenizer")


def parse_phi3(raw: Mapping[str, Any]) -> ModelConfig:
    """Phi-3 (Abdin et al. 2024): a Llama with stacked matrices, and LongRoPE.

    config.json -> ModelConfig, with the defaults of transformers' Phi3Config.
    """
    shared = common(
        with_longrope(raw),
        Defaults(
            model_type="phi3",
            vocab_size=32064,
            hidden_size=3072,
            intermediate_size=8192,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=4096,
            norm_eps=1e-5,
            partial_rotary_factor=1.0,
            bos_token_id=1,
            eos_token_id=32000,
        ),
    )
    window = optional(raw, "sliding_window", None, int)
    return ModelConfig(**shared, **windowed(window, shared["num_hidden_layers"]))


def with_longrope(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json with LongRoPE under its current name (early files: "su" or "yarn"); the context defaults to 4096."""
    scaling = raw.get("rope_scaling") or raw.get("rope_parameters")
    if not isinstance(scaling, Mapping):
        return raw
    scaling = {"original_max_position_embeddings": 4096, **scaling}
    if scaling.get("rope_type", scaling.get("type")) in ("su", "yarn"):
        scaling["rope_type"] = "longrope"
    return {**raw, "rope_scaling": scaling}


PHI3 = Family(
    "phi3", parse_phi3, Names(qkv=("self_attn.qkv_proj",), up=("mlp.gate_up_proj",)).rules, tokenizer_class=""
)
