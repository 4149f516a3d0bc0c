"""nanochat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.fields import Defaults, common, field, optional
from llmcli.model.families.rules import Family, Names


def parse_nanochat(raw: Mapping[str, Any]) -> ModelConfig:
    """nanochat (Karpathy 2025): norms without weights, heads normalized after rotation, an MLP that squares its ReLU.

    config.json -> ModelConfig, with the defaults of transformers' NanoChatConfig.
    """
    shared = common(
        raw,
        Defaults(
            model_type="nanochat",
            vocab_size=50304,
            hidden_size=768,
            intermediate_size=8192,
            num_hidden_layers=12,
            num_attention_heads=6,
            max_position_embeddings=2048,
            hidden_act="relu2",
            bos_token_id=0,
            eos_token_id=1,
        ),
    )
    bias = field(raw, "attention_bias", False)
    return ModelConfig(
        **shared | {"rope": replace(shared["rope"], backwards=True)},
        norm_weight=False,
        embedding_norm=True,
        qk_norm="head",
        qk_norm_after_rope=True,
        qkv_bias=bias,
        out_bias=bias,
        gated_mlp=False,
        logit_softcap=optional(raw, "final_logit_softcapping", 15.0, float),
    )


NANOCHAT = Family("nanochat", parse_nanochat, Names(up=("mlp.fc1",), down="mlp.fc2").rules)
