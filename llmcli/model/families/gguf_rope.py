"""How GGUF files store scaled rotary positions: as metadata, or as factors of the angles in small tensors."""

from __future__ import annotations

import math
from typing import Any

from llmcli.model.config import ModelConfig, RopeConfig
from llmcli.model.families.fields import wrong
from llmcli.model.families.gguf_contents import Contents

MAX_FACTORS = 2**12  # more pairs than a head has
LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"
STILL = 1e30  # the factor of pairs that stand still


def stored_scaling(rope: RopeConfig) -> dict[str, Any]:
    """The inverse of ``scaling_of``, without tensors of factors."""
    original = {"rope.scaling.original_context_length": rope.original_max_position_embeddings}
    if rope.rope_type == "longrope":
        return {"rope.scaling.attn_factor": rope.attention_factor, **original}
    if rope.rope_type not in ("linear", "yarn"):
        return {}
    values: dict[str, Any] = {"rope.scaling.type": rope.rope_type, "rope.scaling.factor": rope.factor}
    if rope.rope_type == "yarn":
        betas = {f"rope.scaling.yarn_{name}": getattr(rope, name) for name in ("beta_fast", "beta_slow")}
        values |= {**original, **betas}
    return values


def factors_of(config: ModelConfig) -> dict[str, list[float]]:
    """The tensors of a file that divide the angle of each rotary pair, for Llama 3's scaling and for LongRoPE."""
    rope = config.rope
    if rope is not None and rope.rope_type == "longrope":
        return {
            "rope_factors_long.weight": list(rope.long_factor),
            "rope_factors_short.weight": list(rope.short_factor),
        }
    if rope is not None and rope.rope_type == "llama3":
        return {"rope_freqs.weight": _llama3_factors(rope, rope.rotated(config.head_dim))}
    if rope is not None and rope.rope_type == "proportional":
        moving, pairs = rope.moving(config.head_dim) // 2, rope.rotated(config.head_dim) // 2
        return {"rope_freqs.weight": [rope.factor] * moving + [STILL] * (pairs - moving)}
    return {}


def _llama3_factors(rope: RopeConfig, rotated: int) -> list[float]:
    """1 for fast pairs, ``factor`` for slow ones; in between, the speeds are interpolated."""
    factors = []
    for feature in range(0, rotated, 2):
        turns = rope.original_max_position_embeddings * rope.theta ** (-feature / rotated) / (2 * math.pi)
        keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        keep = min(max(keep, 0.0), 1.0)
        factors.append(1 / (keep + (1 - keep) / rope.factor))
    return factors


def scaling_of(contents: Contents) -> dict[str, Any] | None:
    """``rope_scaling``. Tensors of factors, one for each pair, are LongRoPE's; Llama 3's are those for any length."""
    context, original = contents.need("context_length"), contents.find("rope.scaling.original_context_length")
    stored = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
    if "rope_freqs.weight" in contents.shapes:
        stored, original = dict.fromkeys(stored, "rope_freqs.weight"), context
    if all(math.prod(contents.shapes.get(name, (MAX_FACTORS + 1,))) <= MAX_FACTORS for name in stored.values()):
        scaling: dict[str, Any] = {key: contents.values(name) for key, name in stored.items()}
        attention = contents.find("rope.scaling.attn_factor")
        scaling |= {"rope_type": "longrope", "original_max_position_embeddings": original or context}
        return scaling | ({} if attention is None else {"attention_factor": attention})
    kind, factor = contents.find("rope.scaling.type"), contents.find("rope.scaling.factor")
    if kind is None and contents.find("rope.scale_linear"):  # as old files have it
        kind, factor = "linear", contents.find("rope.scale_linear")
    if kind in (None, "none") or factor in (None, 0.0, 1.0):
        return None
    if kind == "yarn":
        betas = {name: contents.find(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
        return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original or context, **betas}
    return {"rope_type": kind, "factor": factor}


def proportional(contents: Contents, head_dim: int) -> dict[str, Any]:
    """``rope_parameters`` of heads of which only the fastest pairs move, from the factors that the file has."""
    shape = contents.shapes.get("rope_freqs.weight", ())
    if shape != (head_dim // 2,) or head_dim // 2 > MAX_FACTORS:
        raise wrong("rope_freqs.weight", f"of shape {list(shape)}", f"of shape [{head_dim // 2}]")
    factors = contents.values("rope_freqs.weight")
    if not factors:
        raise wrong("rope_freqs.weight", "empty", "one number for each pair of features")
    moving = [factor for factor in factors if factor < STILL / 2]
    share = {"partial_rotary_factor": len(moving) / len(factors)}
    return {"rope_type": "proportional", **share, "factor": moving[0] if moving else 1.0}


def without_factors(config: ModelConfig) -> bool:
    """Whether the angles need no factors, which not all architectures read."""
    return not factors_of(config)


def log_multiplier(config: ModelConfig) -> float | None:
    """What makes llama.cpp multiply the features that YaRN rotates by ``attention_factor``; None without YaRN.

    It divides the usual 1 + 0.1 ln(factor) by 1 + 0.1 times this number times ln(factor).
    """
    rope = config.rope
    if rope is None or rope.rope_type != "yarn" or rope.factor <= 1:
        return None
    tenth = 0.1 * math.log(rope.factor)
    return round(((1 + tenth) / rope.attention_factor - 1) / tenth, 6)
