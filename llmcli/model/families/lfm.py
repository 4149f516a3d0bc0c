"""LFM2, dense and with experts: most layers have a gated short convolution in attention's place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmcli.model.config import MAX_WIDTH, ModelConfig, MoeConfig
from llmcli.model.families.fields import Defaults, common, field, num_experts, recurrent_layers, wrong
from llmcli.model.families.rules import Family, Names, Rule, Source, linear
from llmcli.model.mixers.config import ShortConvConfig

LFM2_DEFAULTS = Defaults(
    model_type="lfm2",
    vocab_size=65536,
    hidden_size=2560,
    intermediate_size=12288,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=128000,
    tie_word_embeddings=True,
    norm_eps=1e-5,
    norm_eps_key="norm_eps",
    rope_theta=1000000.0,
    bos_token_id=1,
    eos_token_id=2,
)


def parse_lfm2(raw: Mapping[str, Any]) -> ModelConfig:
    """LFM2 (Liquid AI 2025): short convolutions, and in some layers attention with normalized queries and keys.

    config.json -> ModelConfig, with the defaults of transformers' Lfm2Config.
    """
    shared = common({**raw, **_old_names(raw)}, LFM2_DEFAULTS)
    shared["intermediate_size"] = _intermediate_size(raw, shared["intermediate_size"])
    return ModelConfig(**shared, **_mixing(raw, shared))


def parse_lfm2_moe(raw: Mapping[str, Any]) -> ModelConfig:
    """LFM2 with experts (Liquid AI 2025), which the router scores by sigmoid, in all layers except the first ones.

    config.json -> ModelConfig, with the defaults of transformers' Lfm2MoeConfig.
    """
    shared = common(
        {**raw, **_old_names(raw)},
        replace(LFM2_DEFAULTS, model_type="lfm2_moe", hidden_size=2048, intermediate_size=7168),
    )
    dense = min(field(raw, "num_dense_layers", 2), shared["num_hidden_layers"])
    moe = MoeConfig(
        num_experts=num_experts(raw, 32),
        num_experts_per_tok=field(raw, "num_experts_per_tok", 4),
        intermediate_size=field(raw, "moe_intermediate_size", 1792),
        normalize=field(raw, "norm_topk_prob", True),
        dense_layers=frozenset(range(dense)),
        scores="sigmoid",
        choice_bias=field(raw, "use_expert_bias", True),
        normalize_eps=1e-6,
        scale=field(raw, "routed_scaling_factor", 1.0),
    )
    return ModelConfig(**shared, **_mixing(raw, shared), moe=moe)


def _old_names(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the first files call otherwise."""
    names = {"tie_embedding": "tie_word_embeddings", "block_ff_dim": "intermediate_size"}
    return {new: raw[old] for old, new in names.items() if old in raw}


def _intermediate_size(raw: Mapping[str, Any], stated: int) -> int:
    """The width of the MLP; by default two thirds of what the file states, times a factor, rounded up."""
    if not field(raw, "block_auto_adjust_ff_dim", True) or abs(stated) > MAX_WIDTH:  # which ModelConfig reports
        return stated
    multiple = field(raw, "block_multiple_of", 256)
    if multiple < 1:
        raise wrong("block_multiple_of", multiple, "at least 1")
    size = 2 * stated // 3
    factor = raw.get("block_ffn_dim_multiplier", 1.0)
    if factor is None:
        return size
    size = int(field(raw, "block_ffn_dim_multiplier", 1.0) * size)
    return multiple * ((size + multiple - 1) // multiple)


def _mixing(raw: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """``ModelConfig``'s arguments for attention and convolutions."""
    layers = shared["num_hidden_layers"]
    attending = raw.get("full_attn_idxs")
    if attending is not None and (
        not isinstance(attending, list) or any(type(layer) is not int for layer in attending)
    ):
        raise wrong("full_attn_idxs", attending, "a list of layers")
    types = recurrent_layers(raw, layers, "conv", lambda layer: attending is not None and layer not in attending)
    sizes = ShortConvConfig(shared["hidden_size"], field(raw, "conv_L_cache", 3), field(raw, "conv_bias", False))
    return {"qk_norm": "head", "layer_types": types, "mixer": sizes if "recurrent" in types else None}


def _mixer(config: ModelConfig, ours: str, theirs: str) -> list[Rule]:
    sizes, stored = config.mixer, theirs + "conv."
    assert isinstance(sizes, ShortConvConfig)
    shape = (sizes.width, 1, sizes.kernel)
    table = [Rule(ours + "kernel", (Source(stored + "conv.weight", sizes.width, shape=shape),))]
    if sizes.bias:
        table.append(Rule(ours + "kernel_bias", (Source(stored + "conv.bias", sizes.width),)))
    table += linear(ours + "inputs", [Source(stored + "in_proj", 3 * sizes.width)], bias=sizes.bias)
    return table + linear(ours + "out", [Source(stored + "out_proj", config.hidden_size)], bias=sizes.bias)


NAMES = Names(
    norm="model.embedding_norm",
    attn_norm="operator_norm",
    mlp_norm="ffn_norm",
    out="self_attn.out_proj",
    q_norm="self_attn.q_layernorm",
    k_norm="self_attn.k_layernorm",
    up=("feed_forward.w1", "feed_forward.w3"),
    down="feed_forward.w2",
    router="feed_forward.gate",
    expert="feed_forward.experts.{}.",
    expert_up=("w1", "w3"),
    expert_down="w2",
    choice_bias="feed_forward.expert_bias",
    mixer=_mixer,
)
LFM2 = Family("lfm2", parse_lfm2, NAMES.rules)
LFM2_MOE = Family("lfm2_moe", parse_lfm2_moe, NAMES.rules)
