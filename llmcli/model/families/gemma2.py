"""Gemma 2 (Gemma Team 2024): four norms a layer with weights around 0, softcaps, every other layer windowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.model.config import ModelConfig
from llmcli.model.families.common import common
from llmcli.model.families.fields import field, layer_types, optional
from llmcli.model.families.names import Names
from llmcli.model.families.rules import Family

NAMES = Names(
    attn_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)


def parse(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig, with the defaults of transformers' Gemma2Config."""
    shared = gemma(raw, model_type="gemma2", vocab_size=256000, max_position_embeddings=8192)
    return ModelConfig(
        **shared,
        layer_types=layer_types(raw, shared["num_hidden_layers"], lambda layer: layer % 2 == 0),
        attention_softcap=optional(raw, "attn_logit_softcapping", 50.0, float),
        logit_softcap=optional(raw, "final_logit_softcapping", 30.0, float),
    )


def gemma(
    raw: Mapping[str, Any], *, model_type: str, vocab_size: int, max_position_embeddings: int, **others: Any
) -> dict[str, Any]:
    """What Gemma 2 and 3 share, as ``ModelConfig``'s arguments."""
    if field(raw, "use_bidirectional_attention", False):
        raise LlmcliError("config.json: use_bidirectional_attention is not supported", "this model does not write text")
    shared = common(
        raw,
        model_type=model_type,
        vocab_size=vocab_size,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=True,
        hidden_act="gelu_pytorch_tanh",
        hidden_act_key="hidden_activation",
        bos_token_id=2,
        eos_token_id=1,
        **others,
    )
    bias = field(raw, "attention_bias", False)
    return shared | {
        "norm_offset": 1.0,
        "post_norm": True,
        "qkv_bias": bias,
        "out_bias": bias,
        "sliding_window": optional(raw, "sliding_window", 4096, int),
        "attention_scale": max(field(raw, "query_pre_attn_scalar", 256.0), 1e-9) ** -0.5,
        "embedding_scale": shared["hidden_size"] ** 0.5,
    }


FAMILY = Family("gemma2", parse, NAMES.rules)
