"""Rotary position embedding: position becomes an angle by which pairs of a head's features are turned.

Source: Su et al. 2021 (RoFormer), in the split-half layout of Llama: feature i turns with feature i + D/2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmcli.model.config import RopeConfig


def inverse_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Angle per position of each feature pair, in radians, fp32 on the CPU: [D/2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    frequencies = 1.0 / config.theta**exponents
    if config.rope_type == "linear":
        return frequencies / config.factor
    if config.rope_type == "llama3":
        return _llama3(frequencies, config)
    return frequencies


def _llama3(frequencies: Tensor, config: RopeConfig) -> Tensor:
    """Llama 3.1's blend: slow pairs are slowed by ``factor``, fast ones kept, those between mixed."""
    turns = config.original_max_position_embeddings * frequencies / (2 * math.pi)  # full turns in training
    keep = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / config.factor


def rotation(frequencies: Tensor, start: int, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and signed sin for positions start .. start+count-1, each [count, 1, D] to broadcast over heads.

    Computed in fp32 and cast last: bf16 angles would be wrong by radians far into a context.
    """
    positions = torch.arange(start, start + count, dtype=torch.float32, device=frequencies.device)
    angles = torch.outer(positions, frequencies)  # [T, D/2]
    cos, sin = angles.cos(), angles.sin()
    cos = torch.cat((cos, cos), dim=-1).unsqueeze(1)
    signed_sin = torch.cat((-sin, sin), dim=-1).unsqueeze(1)
    return cos.to(dtype), signed_sin.to(dtype)


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Turn x [B, T, heads, D] by the angles of ``rotation``: two products and a sum for all heads at once."""
    half = x.shape[-1] // 2
    return x * cos.to(x.dtype) + x.roll(half, dims=-1) * signed_sin.to(x.dtype)
