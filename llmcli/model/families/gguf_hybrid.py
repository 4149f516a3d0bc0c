"""Falcon-H1, Mamba-2 and Nemotron-H in GGUF files: models with Mamba-2 mixers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.gguf_architecture import NAMES, RMS, Architecture, Value, mixer_field, refusing
from llmcli.model.families.gguf_contents import Contents
from llmcli.model.families.gguf_mixers import mamba
from llmcli.model.families.gguf_rope import factors_of
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


def _has(contents: Contents, ending: str) -> bool:
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
        "mamba_conv_bias": _has(contents, "ssm_conv1d.bias"),
        "mamba_rms_norm": _has(contents, "ssm_norm.weight"),
        "mamba_norm_before_gate": False,
        "attention_bias": _has(contents, "attn_q.bias"),
        "mlp_bias": _has(contents, "ffn_up.bias"),
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
        rope_scaling=lambda config: not factors_of(config),
    ),
    more=_inner_size,
    multipliers=_multipliers,
    multiplied=_multiplied,
    bare=("ffn_norm",),
)
