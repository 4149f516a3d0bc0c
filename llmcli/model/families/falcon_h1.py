"""Falcon-H1: attention and a Mamba-2 mixer beside each other in every layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from llmcli.model.config import ModelConfig
from llmcli.model.families.fields import Defaults, common, field, numbers, wrong
from llmcli.model.families.mamba import mamba_rules, step_limits
from llmcli.model.families.rules import Family, Names
from llmcli.model.mixers.config import MambaConfig


def parse_falcon_h1(raw: Mapping[str, Any]) -> ModelConfig:
    """Falcon-H1 (TII 2025): every layer has attention and a Mamba-2 mixer, and fixed multipliers nearly everywhere.

    config.json -> ModelConfig, with the defaults of transformers' FalconH1Config.
    """
    shared = common(
        raw,
        Defaults(
            model_type="falcon_h1",
            vocab_size=128000,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=8192,
            norm_eps=1e-5,
            bos_token_id=1,
            eos_token_id=2,
        ),
    )
    bias = field(raw, "attention_bias", False)
    gate, down = _multipliers(raw, "mlp_multipliers", 2)
    # What attention reads is multiplied: its scores twice, through queries and keys, and its values once.
    read = _multiplier(raw, "attention_in_multiplier")
    if bias and read != 1:
        raise wrong("attention_in_multiplier", read, "1, although attention has biases")
    return ModelConfig(
        **shared,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=field(raw, "mlp_bias", False),
        layer_types=("hybrid",) * shared["num_hidden_layers"],
        mixer=_mixer(raw, shared),
        # ModelConfig reports a head_dim below 1.
        attention_scale=max(shared["head_dim"], 1) ** -0.5 * _multiplier(raw, "key_multiplier") * read * read,
        attention_out_scale=read * _multiplier(raw, "attention_out_multiplier"),
        gate_scale=gate,
        mlp_out_scale=down,
        embedding_scale=_multiplier(raw, "embedding_multiplier"),
        logit_scale=_multiplier(raw, "lm_head_multiplier"),
    )


def _mixer(raw: Mapping[str, Any], shared: Mapping[str, Any]) -> MambaConfig:
    heads, width = field(raw, "mamba_n_heads", 128), field(raw, "mamba_d_ssm", 1024)
    if "mamba_d_ssm" in raw and raw["mamba_d_ssm"] is None:
        width = field(raw, "mamba_expand", 2) * shared["hidden_size"]
    head_dim = width // max(heads, 1) if raw.get("mamba_d_head", "auto") in ("auto", None) else raw["mamba_d_head"]
    if type(head_dim) is not int or head_dim * heads != width:
        raise wrong("mamba_d_head", head_dim, f"mamba_d_ssm / mamba_n_heads ({width} / {heads})")
    bias, out_bias = field(raw, "mamba_proj_bias", False), field(raw, "projectors_bias", False)
    read = _multiplier(raw, "ssm_in_multiplier")
    if bias != out_bias:
        raise wrong("projectors_bias", out_bias, f"{bias}, as mamba_proj_bias")
    if bias and read != 1:
        raise wrong("ssm_in_multiplier", read, "1, although the mixer has biases")
    norm: Literal["after gate", "before gate"] = "after gate"
    if field(raw, "mamba_norm_before_gate", True):
        norm = "before gate"
    return MambaConfig(
        heads=heads,
        head_dim=head_dim,
        state_size=field(raw, "mamba_d_state", 256),
        groups=field(raw, "mamba_n_groups", 1),
        kernel=field(raw, "mamba_d_conv", 4),
        kernel_bias=field(raw, "mamba_conv_bias", True),
        bias=bias,
        step_limits=step_limits(raw),
        activation=shared["activation"],
        norm=norm if field(raw, "mamba_rms_norm", False) else None,
        part_scales=tuple(read * scale for scale in _multipliers(raw, "ssm_multipliers", 5)),
        out_scale=_multiplier(raw, "ssm_out_multiplier"),
    )


def _multiplier(raw: Mapping[str, Any], key: str) -> float:
    scale = field(raw, key, 1.0)
    if not 0 < scale < math.inf:
        raise wrong(key, scale, "a number above 0")
    return scale


def _multipliers(raw: Mapping[str, Any], key: str, count: int) -> tuple[float, ...]:
    """A list of ``count`` numbers, all 1 by default."""
    scales = numbers(raw, key) or (1.0,) * count
    if len(scales) != count or not all(math.isfinite(scale) for scale in scales):
        raise wrong(key, raw[key], f"{count} numbers")
    return scales


NAMES = Names(
    norm="model.final_layernorm",
    mlp_norm="pre_ff_layernorm",
    up=("feed_forward.gate_proj", "feed_forward.up_proj"),
    down="feed_forward.down_proj",
    mixer=lambda config, ours, theirs: mamba_rules(config, ours, theirs + "mamba."),
)
FALCON_H1 = Family("falcon_h1", parse_falcon_h1, NAMES.rules)
