"""gpt-oss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.model.config import ModelConfig, MoeConfig
from llmcli.model.families.fields import (
    Defaults,
    common,
    field,
    layer_types,
    num_experts,
    optional,
)
from llmcli.model.families.rules import Family, Names

NAMES = Names(
    router="mlp.router",
    expert_up=("gate_up_proj",),
    expert_transposed=True,
    up_interleaved=True,
)
YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
GATE_SLOPE = 1.702  # of the activation "gelu_sigmoid"


def parse_gpt_oss(raw: Mapping[str, Any]) -> ModelConfig:
    """gpt-oss (OpenAI 2025): biased experts with a bounded gate, attention sinks, alternate layers windowed.

    config.json -> ModelConfig, with the defaults of transformers' GptOssConfig.
    Raises LlmcliError if the gate has another slope than in published models.
    """
    if field(raw, "swiglu_alpha", GATE_SLOPE) != GATE_SLOPE:
        raise LlmcliError(f"config.json: swiglu_alpha {raw['swiglu_alpha']} is not supported", f"only {GATE_SLOPE} is")
    scaling = raw.get("rope_scaling") or raw.get("rope_parameters")
    shared = common(
        {**raw, "rope_scaling": scaling or YARN, "hidden_act": "quick_gelu"},  # whatever the file says
        Defaults(
            model_type="gpt_oss",
            vocab_size=201088,
            hidden_size=2880,
            intermediate_size=2880,
            num_hidden_layers=36,
            num_attention_heads=64,
            num_key_value_heads=8,
            head_dim=64,
            max_position_embeddings=131072,
            norm_eps=1e-5,
            rope_theta=150000.0,
        ),
    )
    moe = MoeConfig(
        num_experts=num_experts(raw, 128),
        num_experts_per_tok=field(raw, "num_experts_per_tok", 4),
        intermediate_size=shared["intermediate_size"],
        normalize=True,
        router_bias=True,
    )
    bias = field(raw, "attention_bias", True)
    return ModelConfig(
        **shared,
        moe=moe,
        gate_limit=field(raw, "swiglu_limit", 7.0),
        up_offset=1.0,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        attention_sinks=True,
        sliding_window=optional(raw, "sliding_window", 128, int),
        layer_types=layer_types(raw, shared["num_hidden_layers"], lambda layer: layer % 2 == 0),
    )


GPT_OSS = Family("gpt_oss", parse_gpt_oss, NAMES.rules, stacks_experts=True)
