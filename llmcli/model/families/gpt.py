"""The GPT line: GPT-2, GPT-NeoX (Pythia), StarCoder2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.model.config import ModelConfig
from llmcli.model.families.fields import (
    ACTIVATIONS,
    Defaults,
    choice,
    common,
    field,
    optional,
    token_ids,
    windowed,
)
from llmcli.model.families.rules import Family, Names

GPT2_NAMES = Names(
    embedding="transformer.wte",
    positions="transformer.wpe",
    norm="transformer.ln_f",
    layer="transformer.h.{}.",
    attn_norm="ln_1",
    mlp_norm="ln_2",
    qkv=("attn.c_attn",),
    out="attn.c_proj",
    up=("mlp.c_fc",),
    down="mlp.c_proj",
    transposed=True,
)


def parse_gpt2(raw: Mapping[str, Any]) -> ModelConfig:
    """GPT-2 (Radford et al. 2019): LayerNorm, learned positions, biases everywhere, an ungated tanh-GELU MLP.

    config.json -> ModelConfig, with the defaults of transformers' GPT2Config.
    """
    for key, usual in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if field(raw, key, usual) is not usual:
            raise LlmcliError(f"config.json: {key} = {raw[key]!r} is not supported", f"only {usual} is supported")
    hidden = field(raw, "n_embd", 768)
    heads = field(raw, "n_head", 12)
    if heads > 0 and hidden % heads:
        raise LlmcliError(
            f"config.json: n_embd ({hidden}) must be a multiple of n_head ({heads})", "the file may be damaged"
        )
    return ModelConfig(
        model_type="gpt2",
        vocab_size=field(raw, "vocab_size", 50257),
        hidden_size=hidden,
        intermediate_size=field(raw, "n_inner", 4 * hidden),
        num_hidden_layers=field(raw, "n_layer", 12),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // max(heads, 1),
        max_position_embeddings=field(raw, "n_positions", 1024),
        tie_word_embeddings=field(raw, "tie_word_embeddings", True),
        norm="layer",
        norm_bias=True,
        norm_eps=field(raw, "layer_norm_epsilon", 1e-5),
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        gated_mlp=False,
        activation=choice(raw, "activation_function", "gelu_new", ACTIVATIONS),
        position="learned",
        bos_token_id=next(iter(token_ids(raw, "bos_token_id", 50256)), None),
        eos_token_ids=token_ids(raw, "eos_token_id", 50256),
        eos_by_default="eos_token_id" not in raw,
    )


GPT2 = Family("gpt2", parse_gpt2, GPT2_NAMES.rules, tokenizer_class="GPT2Tokenizer")


GPT_NEOX_NAMES = Names(
    embedding="gpt_neox.embed_in",
    norm="gpt_neox.final_layer_norm",
    head="embed_out",
    layer="gpt_neox.layers.{}.",
    qkv=("attention.query_key_value",),
    out="attention.dense",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    by_head=True,
)


def parse_gpt_neox(raw: Mapping[str, Any]) -> ModelConfig:
    """GPT-NeoX and Pythia (Black et al. 2022): LayerNorm, attention and MLP in parallel, partly rotated heads.

    config.json -> ModelConfig, with the defaults of transformers' GPTNeoXConfig.
    """
    older = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
    shared = common(
        {**raw, **{newer: raw[key] for key, newer in older.items() if key in raw}, "num_key_value_heads": None},
        Defaults(
            model_type="gpt_neox",
            vocab_size=50432,
            hidden_size=6144,
            intermediate_size=24576,
            num_hidden_layers=44,
            num_attention_heads=64,
            max_position_embeddings=2048,
            norm_eps=1e-5,
            norm_eps_key="layer_norm_eps",
            hidden_act="gelu",
            partial_rotary_factor=0.25,
            bos_token_id=0,
            eos_token_id=2,
        ),
    )
    bias = field(raw, "attention_bias", True)
    return ModelConfig(
        **shared,
        norm="layer",
        norm_bias=True,
        parallel_residual=field(raw, "use_parallel_residual", True),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        gated_mlp=False,
    )


GPT_NEOX = Family(
    "gpt_neox",
    parse_gpt_neox,
    GPT_NEOX_NAMES.rules,
    renamed=((r"^lm_head\.", "embed_out."),),
    tokenizer_class="GPTNeoXTokenizer",
)


def parse_starcoder2(raw: Mapping[str, Any]) -> ModelConfig:
    """StarCoder2 (Lozhkov et al. 2024): GPT-2's LayerNorm and biases with Llama's rotary positions and grouped heads.

    config.json -> ModelConfig, with the defaults of transformers' Starcoder2Config.
    """
    shared = common(
        raw,
        Defaults(
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
        ),
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


STARCODER2 = Family(
    "starcoder2",
    parse_starcoder2,
    Names(up=("mlp.c_fc",), down="mlp.c_proj").rules,
    tokenizer_class="GPT2Tokenizer",
)
