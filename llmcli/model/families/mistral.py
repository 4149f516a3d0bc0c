"""Mistral, Ministral 3 and Mixtral."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import ModelConfig, MoeConfig
from llmcli.model.families.fields import (
    Defaults,
    common,
    field,
    num_experts,
    optional,
    windowed,
)
from llmcli.model.families.rules import Family, Names


def parse_mistral(raw: Mapping[str, Any]) -> ModelConfig:
    """Mistral (Jiang et al. 2023): a Llama whose first versions use a sliding window in every layer.

    config.json -> ModelConfig, with the defaults of transformers' MistralConfig.
    """
    shared = common(
        raw,
        Defaults(
            model_type="mistral",
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=131072,
            bos_token_id=1,
            eos_token_id=2,
        ),
    )
    window = optional(raw, "sliding_window", 4096, int)
    return ModelConfig(**shared, **windowed(window, shared["num_hidden_layers"]))


MISTRAL = Family("mistral", parse_mistral, Names().rules, tokenizer_class="")


def parse_ministral3(raw: Mapping[str, Any]) -> ModelConfig:
    """Ministral 3 (Mistral AI 2025): Mistral with YaRN, and queries that grow with the position.

    config.json -> ModelConfig, with the defaults of transformers' Ministral3Config.
    """
    scaling = raw.get("rope_scaling") or raw.get("rope_parameters") or MINISTRAL3_YARN
    shared = common(
        {**raw, "rope_scaling": scaling},
        Defaults(
            model_type="ministral3",
            vocab_size=131072,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=34,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=262144,
            norm_eps=1e-5,
            bos_token_id=1,
            eos_token_id=2,
        ),
    )
    window = optional(raw, "sliding_window", None, int)
    return ModelConfig(
        **shared,
        **windowed(window, shared["num_hidden_layers"]),
        query_scale_beta=field(scaling, "llama_4_scaling_beta", 0.0),
    )


MINISTRAL3_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
MINISTRAL3 = Family("ministral3", parse_ministral3, Names().rules, tokenizer_class="")


MIXTRAL_NAMES = Names(
    router="block_sparse_moe.gate",
    expert="block_sparse_moe.experts.{}.",
    expert_up=("w1", "w3"),
    expert_down="w2",
)


def parse_mixtral(raw: Mapping[str, Any]) -> ModelConfig:
    """Mixtral (Jiang et al. 2024): Mistral with a mixture of experts in every layer.

    config.json -> ModelConfig, with the defaults of transformers' MixtralConfig.
    """
    shared = common(
        raw,
        Defaults(
            model_type="mixtral",
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=131072,
            norm_eps=1e-5,
            rope_theta=1000000.0,
            bos_token_id=1,
            eos_token_id=2,
        ),
    )
    moe = MoeConfig(
        num_experts=num_experts(raw, 8),
        num_experts_per_tok=field(raw, "num_experts_per_tok", 2),
        intermediate_size=shared["intermediate_size"],
        normalize=True,
    )
    window = optional(raw, "sliding_window", None, int)
    return ModelConfig(**shared, **windowed(window, shared["num_hidden_layers"]), moe=moe)


# MLX's names of the experts' matrices.
MIXTRAL_RENAMED = tuple(
    (rf"(block_sparse_moe\.experts\.\d+\.){theirs}\b", rf"\1{ours}")
    for theirs, ours in (("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3"))
)
MIXTRAL = Family("mixtral", parse_mixtral, MIXTRAL_NAMES.rules, MIXTRAL_RENAMED, tokenizer_class="")
