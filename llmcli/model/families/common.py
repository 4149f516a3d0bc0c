"""What nearly every config.json says, under nearly the same names: sizes, norm, activation, positions, end tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.model.config import MOST_LAYERS, MOST_POSITIONS, MOST_WIDTH, ROPE_TYPES, RopeConfig
from llmcli.model.families.fields import ACTIVATIONS, choice, field, numbers, token_ids, wrong


def common(
    raw: Mapping[str, Any],
    *,
    model_type: str,
    vocab_size: int,
    hidden_size: int,
    intermediate_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    max_position_embeddings: int,
    num_key_value_heads: int | None = None,
    head_dim: int | None = None,
    tie_word_embeddings: bool = False,
    norm_eps: float = 1e-6,
    norm_eps_key: str = "rms_norm_eps",
    hidden_act: str = "silu",
    hidden_act_key: str = "hidden_act",
    rope_theta: float = 10000.0,
    partial_rotary_factor: float = 1.0,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
) -> dict[str, Any]:
    """``ModelConfig``'s arguments from a config.json with Llama's keys; the arguments are the family's defaults.

    Published files leave out values that equal them. No ``num_key_value_heads`` means as many as query
    heads, no ``head_dim`` the hidden size shared among those.
    """
    hidden = _size(raw, "hidden_size", hidden_size, MOST_WIDTH)
    heads = field(raw, "num_attention_heads", num_attention_heads)
    kv_heads = num_key_value_heads if "num_key_value_heads" not in raw else None
    if not head_dim and raw.get("head_dim") is None and heads > 0 and hidden % heads:
        raise LlmcliError(
            f"config.json: hidden_size ({hidden}) must be a multiple of num_attention_heads ({heads})",
            "the file may be damaged",
        )
    context = field(raw, "max_position_embeddings", max_position_embeddings)
    angles = rope(raw, context, rope_theta, partial_rotary_factor)
    return {
        "model_type": model_type,
        "vocab_size": field(raw, "vocab_size", vocab_size),
        "hidden_size": hidden,
        "intermediate_size": field(raw, "intermediate_size", intermediate_size),
        "num_hidden_layers": _size(raw, "num_hidden_layers", num_hidden_layers, MOST_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": field(raw, "num_key_value_heads", kv_heads or heads),
        "head_dim": field(raw, "head_dim", head_dim or hidden // max(heads, 1)),
        "max_position_embeddings": stretched(angles, context),
        "tie_word_embeddings": field(raw, "tie_word_embeddings", tie_word_embeddings),
        "norm_eps": field(raw, norm_eps_key, norm_eps),
        "activation": choice(raw, hidden_act_key, hidden_act, ACTIVATIONS),
        "rope": angles,
        "bos_token_id": next(iter(token_ids(raw, "bos_token_id", *_some(bos_token_id))), None),
        "eos_token_ids": token_ids(raw, "eos_token_id", *_some(eos_token_id)),
    }


def _size(raw: Mapping[str, Any], key: str, default: int, most: int) -> int:
    """Checked at once: a family lists its layers one by one, and takes the root of its width."""
    size = field(raw, key, default)
    if not 1 <= size <= most:
        raise wrong(key, size, f"a whole number from 1 to {most}")
    return size


def _some(id: int | None) -> tuple[int, ...]:
    return () if id is None else (id,)


def rope(
    raw: Mapping[str, Any], context: int, theta: float, partial: float, layer_type: str = "full_attention"
) -> RopeConfig:
    """Both generations of config.json: ``rope_theta`` + ``rope_scaling``, and ``rope_parameters``.

    The latter may be nested by layer type. ``theta`` and ``partial`` are the family's defaults.
    """
    scaling = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(scaling, Mapping):
        raise wrong("rope_scaling", scaling, "an object")
    context = min(max(context, 1), MOST_POSITIONS)  # if it is neither, ModelConfig says so
    nested = scaling.get(layer_type)
    scaling = nested if isinstance(nested, Mapping) else scaling
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise wrong("rope_type", rope_type, "one of " + ", ".join(ROPE_TYPES))
    original = field(scaling, "original_max_position_embeddings", context)
    original = field(raw, "original_max_position_embeddings", original)
    parsed = RopeConfig(
        theta=field(scaling, "rope_theta", field(raw, "rope_theta", theta)),
        rope_type=rope_type,
        partial_rotary_factor=field(scaling, "partial_rotary_factor", field(raw, "partial_rotary_factor", partial)),
        factor=field(scaling, "factor", context / max(original, 1)),
        original_max_position_embeddings=context if rope_type == "dynamic" else original,
        low_freq_factor=field(scaling, "low_freq_factor", 1.0),
        high_freq_factor=field(scaling, "high_freq_factor", 4.0),
        beta_fast=field(scaling, "beta_fast", 32.0),
        beta_slow=field(scaling, "beta_slow", 1.0),
        truncate=field(scaling, "truncate", True),
        short_factor=numbers(scaling, "short_factor"),
        long_factor=numbers(scaling, "long_factor"),
    )
    if rope_type in ("linear", "dynamic", "llama3") and "factor" not in scaling:
        raise LlmcliError(f"config.json: rope_type {rope_type!r} has no factor", "the file may be damaged")
    return replace(parsed, attention_factor=field(scaling, "attention_factor", _attention_factor(parsed, scaling)))


def _attention_factor(rope: RopeConfig, scaling: Mapping[str, Any]) -> float:
    """What the longer context's flatter attention is made up for with, where config.json does not say.

    YaRN: Peng et al. 2023, section 3.4; LongRoPE: Ding et al. 2024, as in Phi-3.
    """
    if rope.factor <= 1:
        return 1.0
    if rope.rope_type == "yarn":
        one, all_dim = field(scaling, "mscale", 0.0), field(scaling, "mscale_all_dim", 0.0)
        if one and all_dim:
            return (0.1 * one * math.log(rope.factor) + 1) / (0.1 * all_dim * math.log(rope.factor) + 1)
        return 0.1 * math.log(rope.factor) + 1
    if rope.rope_type == "longrope":
        return math.sqrt(1 + math.log(rope.factor) / math.log(max(rope.original_max_position_embeddings, 2)))
    return 1.0


def stretched(rope: RopeConfig, context: int) -> int:
    """The context in tokens. "dynamic" and "yarn" files may give the one before stretching."""
    if rope.rope_type in ("dynamic", "yarn") and rope.factor > 1 and context > 0:
        longest = rope.factor * rope.original_max_position_embeddings
        return max(context, int(min(longest, MOST_POSITIONS)))
    return context
