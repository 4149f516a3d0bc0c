"""The GPT line: GPT-2, GPT-Neo, GPT-J, GPT-NeoX (Pythia), StarCoder2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.model.config import MAX_LAYERS, LayerType, ModelConfig, RopeConfig
from llmcli.model.families.fields import (
    ACTIVATIONS,
    Defaults,
    choice,
    common,
    field,
    optional,
    token_ids,
    windowed,
    wrong,
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


GPT_NEO_NAMES = replace(
    GPT2_NAMES,
    qkv=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
    out="attn.attention.out_proj",
    transposed=False,
)


def parse_gpt_neo(raw: Mapping[str, Any]) -> ModelConfig:
    """GPT-Neo (Black et al. 2021): GPT-2 with windows in alternate layers, and scores that are not scaled.

    config.json -> ModelConfig, with the defaults of transformers' GPTNeoConfig.
    """
    layers, hidden = field(raw, "num_layers", 24), field(raw, "hidden_size", 2048)
    shared = common(
        {
            **raw,
            "num_hidden_layers": layers,
            "num_attention_heads": field(raw, "num_heads", 16),
            "num_key_value_heads": None,
            "head_dim": None,
            "intermediate_size": field(raw, "intermediate_size", 4 * hidden),
        },
        Defaults(
            model_type="gpt_neo",
            vocab_size=50257,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=24,
            num_attention_heads=16,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            norm_eps=1e-5,
            norm_eps_key="layer_norm_epsilon",
            hidden_act="gelu_new",
            hidden_act_key="activation_function",
            bos_token_id=50256,
            eos_token_id=50256,
        ),
    )
    return ModelConfig(
        **shared | {"rope": None},
        norm="layer",
        norm_bias=True,
        out_bias=True,
        mlp_bias=True,
        gated_mlp=False,
        position="learned",
        attention_scale=1.0,
        sliding_window=field(raw, "window_size", 256),
        layer_types=_attention_types(raw),
    )


def _attention_types(raw: Mapping[str, Any]) -> tuple[LayerType, ...]:
    """The layers of ``attention_types``, such as [[["global", "local"], 12]]: 12 times a full and a windowed one."""
    value = raw.get("attention_types")
    value = [[["global", "local"], 12]] if value is None else value
    known: dict[str, LayerType] = {"global": "full_attention", "local": "sliding_attention"}
    types: list[LayerType] = []
    for entry in value if isinstance(value, list) else [None]:
        match entry:
            case [list(names), int(times)] if 0 <= times <= MAX_LAYERS and all(name in known for name in names):
                types += [known[name] for name in names] * times
            case _:
                raise wrong("attention_types", value, 'a list such as [[["global", "local"], 12]]')
    return tuple(types)


GPT_NEO = Family("gpt_neo", parse_gpt_neo, GPT_NEO_NAMES.rules, tokenizer_class="GPT2Tokenizer")


GPTJ_NAMES = Names(
    embedding="transformer.wte",
    norm="transformer.ln_f",
    layer="transformer.h.{}.",
    attn_norm="ln_1",
    qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    out="attn.out_proj",
    up=("mlp.fc_in",),
    down="mlp.fc_out",
    interleaved=True,
)


def parse_gptj(raw: Mapping[str, Any]) -> ModelConfig:
    """GPT-J (Wang & Komatsuzaki 2021): attention and MLP in parallel after one LayerNorm, a head with a bias.

    config.json -> ModelConfig, with the defaults of transformers' GPTJConfig.
    """
    older = {
        "n_embd": "hidden_size",
        "n_head": "num_attention_heads",
        "n_layer": "num_hidden_layers",
        "n_positions": "max_position_embeddings",
    }
    raw = {**raw, **{newer: raw[key] for key, newer in older.items() if key in raw}}
    shared = common(
        {
            **raw,
            **dict.fromkeys(("num_key_value_heads", "head_dim", "rope_scaling", "rope_parameters", "rope_theta")),
            "intermediate_size": field(raw, "n_inner", 4 * field(raw, "hidden_size", 4096)),
        },
        Defaults(
            model_type="gptj",
            vocab_size=50400,
            hidden_size=4096,
            intermediate_size=16384,
            num_hidden_layers=28,
            num_attention_heads=16,
            max_position_embeddings=2048,
            norm_eps=1e-5,
            norm_eps_key="layer_norm_epsilon",
            hidden_act="gelu_new",
            hidden_act_key="activation_function",
            bos_token_id=50256,
            eos_token_id=50256,
        ),
    )
    rotated = field(raw, "rotary_dim", 64)
    if not 1 <= rotated <= shared["head_dim"]:
        raise wrong("rotary_dim", rotated, f"a whole number from 1 to {shared['head_dim']}")
    share = min(math.nextafter(rotated / shared["head_dim"], 2.0), 1.0)  # of which a head has no feature less
    return ModelConfig(
        **shared | {"rope": RopeConfig(partial_rotary_factor=share)},
        norm="layer",
        norm_bias=True,
        parallel_residual=True,
        shared_norm=True,
        mlp_bias=True,
        head_bias=True,
        gated_mlp=False,
    )


GPTJ = Family("gptj", parse_gptj, GPTJ_NAMES.rules, tokenizer_class="GPT2Tokenizer")


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
