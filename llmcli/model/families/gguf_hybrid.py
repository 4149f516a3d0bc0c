"""Falcon-H1, Mamba-2 and Nemotron-H in GGUF files: models with Mamba-2 mixers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.gguf_architecture import (
    EXPERT_SIZE,
    NAMES,
    RMS,
    UNGATED,
    Architecture,
    Value,
    expert_field,
    groups_alike,
    mixer_field,
    refusing,
)
from llmcli.model.families.gguf_contents import HEADS, KV_HEADS, Contents
from llmcli.model.families.gguf_mixers import mamba
from llmcli.model.families.gguf_rope import without_factors
from llmcli.model.families.rules import Runs
from llmcli.model.mixers.config import MambaConfig


def _values(kernel: str, state: str, groups: str, heads: str) -> tuple[Value, ...]:
    """The sizes of a mixer, under the family's names for them."""
    return (
        mixer_field(kernel, "ssm.conv_kernel", "kernel"),
        mixer_field(state, "ssm.state_size", "state_size"),
        mixer_field(groups, "ssm.group_count", "groups"),
        mixer_field(heads, "ssm.time_step_rank", "heads"),
    )


def has(contents: Contents, ending: str) -> bool:
    """Whether any layer has a tensor whose name has this ending."""
    return any(name.startswith("blk.") and name.endswith(ending) for name in contents.shapes)


def _head_dim(contents: Contents) -> int:
    """The size of a mixer's heads."""
    heads = contents.count("ssm.time_step_rank", 1)
    return contents.count("ssm.inner_size", heads) // heads


def _inner_size(config: ModelConfig) -> dict[str, Any]:
    return {"ssm.inner_size": config.mixer.width if isinstance(config.mixer, MambaConfig) else None}


def kernel_bias(config: ModelConfig) -> bool:
    """Whether a mixer's convolution has a bias, without which llama.cpp cannot compute it."""
    return not isinstance(config.mixer, MambaConfig) or config.mixer.kernel_bias


# --- Falcon-H1 ---


def _falcon_h1(contents: Contents) -> dict[str, Any]:
    return {
        "mamba_d_ssm": contents.need("ssm.inner_size"),
        "mamba_d_head": _head_dim(contents),
        "mamba_conv_bias": has(contents, "ssm_conv1d.bias"),
        "mamba_rms_norm": has(contents, "ssm_norm.weight"),
        "mamba_norm_before_gate": False,
        "attention_bias": has(contents, "attn_q.bias"),
        "mlp_bias": has(contents, "ffn_up.bias"),
    }


def _multipliers(config: ModelConfig) -> Mapping[str, Runs]:
    """What the weights are multiplied by in the file, which has no other place for a model's multipliers."""
    mixer = config.mixer
    assert isinstance(mixer, MambaConfig)
    size, kv, hidden = config.head_dim, config.num_key_value_heads, config.hidden_size
    written = mixer.groups * mixer.state_size
    factors: dict[str, Runs] = {
        "token_embd": ((config.vocab_size, config.embedding_scale),),
        "output": ((config.vocab_size, config.logit_scale),),
        "attn_k": ((kv * size, (config.attention_scale or size**-0.5) * size**0.5),),
        "attn_output": ((hidden, config.attention_out_scale),),
        "ffn_gate": ((config.intermediate_size, config.gate_scale),),
        "ffn_down": ((hidden, config.mlp_out_scale),),
        "ssm_out": ((hidden, mixer.out_scale),),
    }
    if mixer.part_scales:
        parts = (mixer.width, mixer.width, written, written, mixer.heads)
        factors["ssm_in"] = tuple(zip(parts, mixer.part_scales, strict=True))
    return {name: runs for name, runs in factors.items() if any(abs(factor - 1) > 1e-9 for _, factor in runs)}


def _multiplied(config: ModelConfig) -> ModelConfig:
    """The config of the model whose weights are multiplied."""
    mixer = config.mixer
    if isinstance(mixer, MambaConfig):
        mixer = replace(mixer, part_scales=tuple(1.0 for _ in mixer.part_scales), out_scale=1.0)
    return replace(
        config,
        mixer=mixer,
        embedding_scale=1.0,
        logit_scale=1.0,
        attention_scale=config.head_dim**-0.5,
        attention_out_scale=1.0,
        gate_scale=1.0,
        mlp_out_scale=1.0,
    )


FALCON_H1 = Architecture(
    "falcon_h1",
    replace(NAMES, mixer=mamba),
    (*RMS, *_values("mamba_d_conv", "mamba_d_state", "mamba_n_groups", "mamba_n_heads")),
    _falcon_h1,
    refused=refusing(
        attention_bias=lambda config: not config.out_bias,
        mamba_conv_bias=kernel_bias,
        tie_word_embeddings=lambda config: (
            not config.tie_word_embeddings or config.embedding_scale == config.logit_scale
        ),
        rope_scaling=without_factors,
    ),
    more=_inner_size,
    multipliers=_multipliers,
    multiplied=_multiplied,
    bare=("ffn_norm",),
)


# --- Mamba-2 ---


def _mamba2(contents: Contents) -> dict[str, Any]:
    hidden = contents.count("embedding_length", 1)
    return {
        "head_dim": _head_dim(contents),
        "expand": contents.count("ssm.inner_size", hidden) // hidden,
        "use_conv_bias": has(contents, "ssm_conv1d.bias"),
    }


MAMBA2 = Architecture(
    "mamba2",
    replace(NAMES, mixer=mamba),
    (*RMS, *_values("conv_kernel", "state_size", "n_groups", "num_heads")),
    _mamba2,
    refused=refusing(use_conv_bias=kernel_bias),
    keys={"rms_norm_eps": "layer_norm_epsilon"},
    # There is no attention and no MLP, but llama.cpp asks for their sizes.
    more=lambda config: (
        _inner_size(config)
        | {HEADS: 0, "feed_forward_length": 0}
        | dict.fromkeys((KV_HEADS, "attention.key_length", "attention.value_length"))
    ),
    plain_heads=False,
)


# --- Nemotron-H ---

RMS_EPS, EPS = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
NEMOTRON_VALUES = (
    Value("layer_norm_epsilon", EPS, attrgetter("norm_eps"), read=lambda contents, key: _norm_eps(contents)),
    *_values("conv_kernel", "ssm_state_size", "n_groups", "mamba_num_heads"),
)
NEMOTRON_EXPERTS = (
    replace(expert_field("num_experts", "expert_count"), name="n_routed_experts"),
    expert_field("num_experts_per_tok", "expert_used_count"),
    replace(EXPERT_SIZE, required=False),
    replace(
        expert_field("shared_intermediate_size", "expert_shared_feed_forward_length"),
        name="moe_shared_expert_intermediate_size",
    ),
)


def _norm_eps(contents: Contents) -> Any:
    return contents.need(EPS if contents.find(RMS_EPS) is None else RMS_EPS)


def _nemotron_h(contents: Contents) -> dict[str, Any]:
    """A layer with an MLP or experts states their width, one with attention its key/value heads."""
    experts = contents.find("expert_count") or 0
    wide, attending = contents.by_layer("feed_forward_length"), contents.by_layer(KV_HEADS)
    kinds = [
        ("moe" if experts else "mlp") if width else "attention" if heads else "mamba"
        for width, heads in zip(wide, attending, strict=True)
    ]
    raw = {
        "layers_block_type": kinds,
        "mamba_head_dim": _head_dim(contents),
        "use_conv_bias": has(contents, "ssm_conv1d.bias"),
        "attention_bias": has(contents, "attn_q.bias"),
        "mlp_bias": has(contents, "ffn_up.bias"),
    }
    if not experts:
        return raw
    return raw | {
        # Old files state only the width of all experts that a token has.
        "moe_intermediate_size": contents.find(EXPERT_SIZE.key)
        or contents.need("feed_forward_length") // contents.count("expert_used_count", 1),
        "moe_latent_size": contents.find("moe_latent_size"),
        "norm_topk_prob": contents.find("expert_weights_norm") or False,
        "routed_scaling_factor": contents.find("expert_weights_scale") or 1.0,
        "n_group": contents.count("expert_group_count", 1),
        "topk_group": contents.count("expert_group_used_count", 1),
    }


def _nemotron_h_more(config: ModelConfig) -> dict[str, Any]:
    layers, moe = range(config.num_hidden_layers), config.moe
    width = config.intermediate_size if moe is None else moe.intermediate_size
    experts: dict[str, Any] = {}
    if moe is not None:
        experts = {
            "expert_shared_count": 1,
            "expert_weights_norm": moe.normalize,
            "expert_weights_scale": moe.scale,
            "expert_group_count": moe.groups,
            "expert_group_used_count": moe.groups_per_tok,
        }
    return {
        **_inner_size(config),
        KV_HEADS: [config.num_key_value_heads if config.has_attention(layer) else 0 for layer in layers],
        "feed_forward_length": [width if config.has_mlp(layer) else 0 for layer in layers],
        RMS_EPS: config.norm_eps,
        **experts,
    }


def _experts_everywhere(config: ModelConfig) -> bool:
    """Whether no layer has an MLP beside layers with experts."""
    return config.moe is None or all(
        config.is_moe(layer) for layer in range(config.num_hidden_layers) if config.has_mlp(layer)
    )


# llama.cpp does not raise step sizes to time_step_min, which hardly any of these models' steps are below.
NEMOTRON_H = Architecture(
    "nemotron_h",
    replace(
        UNGATED,
        mlp_norm="attn_norm",  # a layer has one norm
        choice_bias="exp_probs_b.bias",
        expert_up=("ffn_up",),
        shared_up=("ffn_up_shexp",),
        shared_down="ffn_down_shexp",
        mixer=mamba,
    ),
    NEMOTRON_VALUES,
    _nemotron_h,
    refused=refusing(use_conv_bias=kernel_bias, layers_block_type=_experts_everywhere, topk_group=groups_alike),
    more=_nemotron_h_more,
    plain_heads=False,
)
NEMOTRON_H_MOE = replace(NEMOTRON_H, values=(*NEMOTRON_VALUES, *NEMOTRON_EXPERTS))
