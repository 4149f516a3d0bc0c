"""BLOOM and Falcon, some of whose models know positions from a penalty on distance (ALiBi)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.model.config import MAX_WIDTH, AlibiConfig, ModelConfig
from llmcli.model.families.fields import Defaults, common, field, optional, wrong
from llmcli.model.families.rules import Family, Names, Rule

NAMES = Names(
    embedding="transformer.word_embeddings",
    embedding_norm="transformer.word_embeddings_layernorm",
    norm="transformer.ln_f",
    layer="transformer.h.{}.",
    qkv=("self_attention.query_key_value",),
    out="self_attention.dense",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    by_head=True,
)


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """The slope of each head: 2^(-8i/n) for i = 1 .. n; other numbers than powers of two take those between, too.

    Source: Press et al. 2022, ALiBi, and its published code. No slopes for a number of heads that no model has.
    """
    if not 1 <= heads <= MAX_WIDTH:
        return ()
    most = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * i / most) for i in range(1, most + 1)]
    slopes += [2 ** (-4 * i / most) for i in range(1, 2 * (heads - most) + 1, 2)]
    return tuple(slopes)


def parse_bloom(raw: Mapping[str, Any]) -> ModelConfig:
    """BLOOM (BigScience 2022): ALiBi, a norm after the embedding, biases everywhere, an ungated tanh-GELU MLP.

    config.json -> ModelConfig, with the defaults of transformers' BloomConfig.
    """
    key = "apply_residual_connection_post_layernorm"
    if field(raw, key, False):
        raise LlmcliError(f"config.json: {key} = true is not supported", "no published model has it")
    raw = _renamed(raw, {"n_embed": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"})
    hidden = field(raw, "hidden_size", 64)
    shared = common(
        {
            **raw,
            "intermediate_size": 4 * hidden,
            "num_key_value_heads": None,
            "head_dim": None,
            "hidden_act": None,
            "max_position_embeddings": raw.get("seq_length"),
        },
        Defaults(
            model_type="bloom",
            vocab_size=250880,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=8,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            norm_eps=1e-5,
            norm_eps_key="layer_norm_epsilon",
            hidden_act="gelu_pytorch_tanh",
            bos_token_id=1,
            eos_token_id=2,
        ),
    )
    return ModelConfig(
        **shared | {"rope": None},
        norm="layer",
        norm_bias=True,
        embedding_norm=True,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        gated_mlp=False,
        position="alibi",
        alibi=AlibiConfig(alibi_slopes(shared["num_attention_heads"])),
    )


BLOOM = Family("bloom", parse_bloom, NAMES.rules)


def parse_falcon(raw: Mapping[str, Any]) -> ModelConfig:
    """Falcon (Almazrouei et al. 2023): one head of keys and values, or a few; attention and MLP in parallel.

    Falcon-RW has ALiBi instead of rotary positions, and attention before the MLP.
    config.json -> ModelConfig, with the defaults of transformers' FalconConfig.
    """
    raw = _renamed(raw, {"n_embed": "hidden_size"})
    hidden, heads = field(raw, "hidden_size", 4544), field(raw, "num_attention_heads", 71)
    grouped, norms = field(raw, "new_decoder_architecture", False), optional(raw, "num_ln_in_parallel_attn", None, int)
    if norms not in (None, 1, 2):
        raise wrong("num_ln_in_parallel_attn", norms, "1 or 2")
    kv_heads = 1 if field(raw, "multi_query", True) else heads
    shared = common(
        {
            **raw,
            "intermediate_size": field(raw, "ffn_hidden_size", 4 * hidden),
            "num_key_value_heads": field(raw, "num_kv_heads", heads) if grouped else kv_heads,
            "head_dim": None,
        },
        Defaults(
            model_type="falcon",
            vocab_size=65024,
            hidden_size=4544,
            intermediate_size=18176,
            num_hidden_layers=32,
            num_attention_heads=71,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            norm_eps=1e-5,
            norm_eps_key="layer_norm_epsilon",
            hidden_act="gelu",
            hidden_act_key="activation",
            bos_token_id=11,
            eos_token_id=11,
        ),
    )
    parallel, bias = grouped or field(raw, "parallel_attn", True), field(raw, "bias", False)
    alibi = None
    if field(raw, "alibi", False):
        alibi = AlibiConfig(alibi_slopes(heads), scale=shared["head_dim"] ** -0.5, bfloat16=True)
    return ModelConfig(
        **shared | ({} if alibi is None else {"rope": None}),
        norm="layer",
        norm_bias=True,
        parallel_residual=parallel,
        shared_norm=parallel and (norms == 1 or not grouped),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        gated_mlp=False,
        position="rope" if alibi is None else "alibi",
        alibi=alibi,
    )


def _falcon_rules(config: ModelConfig) -> list[Rule]:
    two_norms = config.parallel_residual and not config.shared_norm
    names = replace(NAMES, attn_norm="ln_attn", mlp_norm="ln_mlp") if two_norms else NAMES
    return names.rules(config)


def _renamed(raw: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """config.json with transformers' newer ``names`` of some keys."""
    return {**raw, **{newer: raw[key] for key, newer in names.items() if raw.get(key) is not None}}


FALCON = Family("falcon", parse_falcon, _falcon_rules)
