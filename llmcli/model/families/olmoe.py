"""OLMoE (Muennighoff et al. 2024): a mixture of experts in every layer, queries and keys normed over all heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.model.config import ModelConfig, MoeConfig
from llmcli.model.families.common import common
from llmcli.model.families.fields import field, num_experts
from llmcli.model.families.names import Names
from llmcli.model.families.rules import Family


def parse(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig, with the defaults of transformers' OlmoeConfig. Errors: clipped q, k and v."""
    if raw.get("clip_qkv") is not None:
        raise LlmcliError("config.json: clip_qkv is not supported", "published OLMoE models do without")
    shared = common(
        raw,
        model_type="olmoe",
        vocab_size=50304,
        hidden_size=2048,
        intermediate_size=2048,
        num_hidden_layers=16,
        num_attention_heads=16,
        max_position_embeddings=4096,
        norm_eps=1e-5,
        eos_token_id=50279,
    )
    moe = MoeConfig(
        num_experts=num_experts(raw, 64),
        num_experts_per_tok=field(raw, "num_experts_per_tok", 8),
        intermediate_size=shared["intermediate_size"],
        normalize=field(raw, "norm_topk_prob", False),
    )
    bias = field(raw, "attention_bias", False)
    return ModelConfig(**shared, moe=moe, qk_norm="full", qkv_bias=bias, out_bias=bias)


FAMILY = Family("olmoe", parse, Names().rules)
