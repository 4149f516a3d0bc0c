"""DeepSeek-V2 and V3 and GLM-4.7-Flash in GGUF files: latent attention, and experts in groups."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.deepseek import LatentNames
from llmcli.model.families.gguf_architecture import (
    RMS,
    SHARED_NAMES,
    Architecture,
    Value,
    expert_field,
    groups_alike,
    refusing,
)
from llmcli.model.families.gguf_contents import Contents
from llmcli.model.families.gguf_rope import LOG_MULTIPLIER, scaling_of

SOFTMAX, SIGMOID = 1, 2  # llama.cpp's numbers of scoring functions
LITE_LAYERS = (26, 27)  # of models whose queries llama.cpp expects to come straight from the residual stream


LATENT_NAMES = LatentNames(
    queries="attn_q",
    query_latent="attn_q_a",
    query_norm="attn_q_a_norm",
    queries_of_latent="attn_q_b",
    latent="attn_kv_a_mqa",
    latent_norm="attn_kv_a_norm",
    kv="attn_kv_b",
    out="attn_output",
)
BY_HEAD = replace(LATENT_NAMES, kv_by_head=("heads.{}.attn_k_b", "heads.{}.attn_v_b"))


def _latent(name: str, key: str) -> Value:
    return Value(name, key, lambda config: getattr(config.latent, name, None))


def _shared_experts(config: ModelConfig) -> int | None:
    """The number of experts that serve every token; None if their width is no multiple of an expert's."""
    moe = config.moe
    if moe is None or moe.shared_intermediate_size is None or moe.shared_intermediate_size % moe.intermediate_size:
        return None
    return moe.shared_intermediate_size // moe.intermediate_size


VALUES = (
    *RMS,
    replace(_latent("rank", "attention.kv_lora_rank"), name="kv_lora_rank"),
    replace(expert_field("num_experts", "expert_count"), name="n_routed_experts"),
    expert_field("num_experts_per_tok", "expert_used_count"),
    replace(expert_field("intermediate_size", "expert_feed_forward_length"), name="moe_intermediate_size"),
    Value("n_shared_experts", "expert_shared_count", _shared_experts),
)


def _deepseek(contents: Contents) -> dict[str, Any]:
    """Old files state sizes of whole keys and values; new ones those of what is cached, and the others besides.

    Files that state no function of scores have softmax, but sigmoid if experts have a bias for their choice.
    """
    split = contents.find("attention.key_length_mla") is not None
    ending = "_mla" if split else ""
    rotated = contents.count("rope.dimension_count", 64)
    gating = contents.find("expert_gating_func")
    if gating is None:
        biased = any(name.endswith("exp_probs_b.bias") for name in contents.shapes)
        gating = SIGMOID if biased else SOFTMAX
    groups = contents.count("expert_group_count", 1)
    routing: dict[str, Any] = {"model_type": "deepseek_v3", "scoring_func": "sigmoid"}
    if gating == SOFTMAX:
        method = "group_limited_greedy" if groups > 1 else "greedy"
        routing = {"model_type": "deepseek_v2", "scoring_func": "softmax", "topk_method": method}
    return {
        **routing,
        "q_lora_rank": contents.find("attention.q_lora_rank") or None,
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": contents.count(f"attention.key_length{ending}", rotated) - rotated,
        "v_head_dim": contents.count(f"attention.value_length{ending}", 1),
        "first_k_dense_replace": contents.find("leading_dense_block_count") or 0,
        "norm_topk_prob": contents.find("expert_weights_norm") or False,
        "routed_scaling_factor": contents.find("expert_weights_scale") or 1.0,
        "n_group": groups,
        "topk_group": contents.count("expert_group_used_count", 1),
        "rope_scaling": _scaling(contents),
    }


def _scaling(contents: Contents) -> dict[str, Any] | None:
    """Files state a tenth of what YaRN's scale of scores grows by; rotated features are not scaled, then."""
    scaling, tenth = scaling_of(contents), contents.number(LOG_MULTIPLIER)
    if scaling is None or not tenth:
        return scaling
    grows = float(f"{10 * tenth:.6g}")
    return scaling | {"mscale": grows, "mscale_all_dim": grows}


def _growth(config: ModelConfig) -> float:
    """The inverse: ``mscale_all_dim``; 0 without YaRN."""
    rope, sizes = config.rope, config.latent
    if rope is None or sizes is None or config.attention_scale is None or rope.factor <= 1:
        return 0.0
    longer = math.sqrt(config.attention_scale * math.sqrt(sizes.plain_dim + config.head_dim))
    return round((longer - 1) / (0.1 * math.log(rope.factor)), 6)


def _more(config: ModelConfig) -> dict[str, Any]:
    sizes, moe = config.latent, config.moe
    if sizes is None or moe is None:
        return {}
    return {
        "attention.head_count_kv": 1,  # the latent vector, and the key that all heads share
        "attention.key_length": sizes.rank + config.head_dim,
        "attention.value_length": sizes.rank,
        "attention.key_length_mla": sizes.plain_dim + config.head_dim,
        "attention.value_length_mla": sizes.value_dim,
        "attention.q_lora_rank": sizes.query_rank or 0,
        "rope.dimension_count": config.head_dim,
        LOG_MULTIPLIER: _growth(config) / 10 or None,
        "leading_dense_block_count": len(moe.dense_layers),
        "expert_gating_func": SIGMOID if moe.scores == "sigmoid" else SOFTMAX,
        "expert_weights_norm": moe.normalize,
        "expert_weights_scale": moe.scale,
        "expert_group_count": moe.groups,
        "expert_group_used_count": moe.groups_per_tok,
    }


def _queries_alike(config: ModelConfig) -> bool:
    sizes = config.latent
    return sizes is None or sizes.query_rank is None or config.num_hidden_layers not in LITE_LAYERS


def _scaled_alike(config: ModelConfig) -> bool:
    """With YaRN, llama.cpp expects scores whose scale grows."""
    return config.rope is None or config.rope.rope_type != "yarn" or _growth(config) > 0


DEEPSEEK = Architecture(
    "deepseek_v3",
    replace(SHARED_NAMES, choice_bias="exp_probs_b.bias", latent=BY_HEAD.rules),
    VALUES,
    _deepseek,
    refused=refusing(
        n_group=groups_alike,
        q_lora_rank=_queries_alike,
        rope_scaling=_scaled_alike,
        # llama.cpp normalizes latents with the eps of the other norms.
        rms_norm_eps=lambda config: config.norm_eps <= 1e-5,
    ),
    more=_more,
    plain_heads=False,
)
# Old files have one matrix for the keys and values of all heads.
DEEPSEEK_WHOLE = replace(DEEPSEEK, names=replace(DEEPSEEK.names, latent=LATENT_NAMES.rules))
