"""Rotary position embedding: position becomes an angle by which pairs of a head's features are turned.

Source: Su et al. 2021 (RoFormer), in the split-half layout of Llama: feature i turns with feature i + D/2.
A model is stretched beyond its first context by slowing some pairs; how is the config's ``rope_type``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmcli.model.config import RopeConfig


def inverse_frequencies(config: RopeConfig, head_dim: int, span: int = 0) -> Tensor:
    """Angle per position of each of the R/2 turned pairs, in radians, fp32 on the CPU: [R/2]; see ``span``."""
    turned = config.rotated(head_dim)
    exponents = torch.arange(0, turned, 2, dtype=torch.float32, device="cpu") / turned
    if config.rope_type == "dynamic":
        return 1.0 / _dynamic_theta(config, turned, span) ** exponents
    frequencies = 1.0 / config.theta**exponents
    if config.rope_type == "linear":
        return frequencies / config.factor
    if config.rope_type == "llama3":
        return _llama3(frequencies, config)
    if config.rope_type == "yarn":
        return _yarn(frequencies, config, turned)
    if config.rope_type == "longrope":
        factors = config.long_factor if span else config.short_factor
        return frequencies / torch.tensor(factors)
    return frequencies


def span(config: RopeConfig | None, length: int) -> int:
    """What of a text's ``length`` decides the angles: with one span, every position is turned alike.

    For most types nothing does (0). "longrope" changes once, where the original context ends;
    "dynamic" with every position from there on.
    """
    if config is None or length <= config.original_max_position_embeddings:
        return 0
    return {"longrope": 1, "dynamic": length}.get(config.rope_type, 0)


def planned(config: RopeConfig | None, prompt: int, total: int) -> int:
    """The length to choose angles for, where a prompt may grow to ``total`` positions.

    "dynamic" angles would change with every token, and all keys with them: they are fixed for the total.
    """
    return total if config is not None and config.rope_type == "dynamic" else prompt


def _dynamic_theta(config: RopeConfig, turned: int, span: int) -> float:
    """NTK-aware scaling that grows with the text (bloc97, emozilla 2023): fast pairs keep their pace."""
    stretch = max(span, config.original_max_position_embeddings) / config.original_max_position_embeddings
    return float(config.theta * (config.factor * stretch - (config.factor - 1)) ** (turned / (turned - 2)))


def _llama3(frequencies: Tensor, config: RopeConfig) -> Tensor:
    """Llama 3.1's blend: slow pairs are slowed by ``factor``, fast ones kept, those between mixed."""
    turns = config.original_max_position_embeddings * frequencies / (2 * math.pi)  # full turns in training
    keep = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / config.factor


def _yarn(frequencies: Tensor, config: RopeConfig, turned: int) -> Tensor:
    """YaRN's blend (Peng et al. 2023, section 3.2), whose ramp runs over the pair's number, not its frequency."""

    def pair(turns: float) -> float:
        """The pair, counted from the fastest, that makes so many full turns in the original context."""
        longest = config.original_max_position_embeddings / (turns * 2 * math.pi)
        return turned * math.log(longest) / (2 * math.log(config.theta))

    first, last = pair(config.beta_fast), pair(config.beta_slow)
    if config.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, turned - 1)
    width = last - first or 0.001
    slow = ((torch.arange(turned // 2, dtype=torch.float32) - first) / width).clamp(0.0, 1.0)
    return (1 - slow) * frequencies + slow * frequencies / config.factor


def rotation(
    frequencies: Tensor, start: int, count: int, dtype: torch.dtype, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """cos and signed sin for positions start .. start+count-1, times ``scale``: each [count, R], for all heads.

    Computed in fp32 and cast last: bf16 angles would be wrong by radians far into a context.
    """
    positions = torch.arange(start, start + count, dtype=torch.float32, device=frequencies.device)
    angles = torch.outer(positions, frequencies)  # [T, R/2]
    cos, sin = angles.cos() * scale, angles.sin() * scale
    cos = torch.cat((cos, cos), dim=-1)
    signed_sin = torch.cat((-sin, sin), dim=-1)
    return cos.to(dtype), signed_sin.to(dtype)


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Turn the first R features of x [B, heads, T, D] by the angles of ``rotation``: all heads at once."""
    turned = cos.shape[-1]
    if turned < x.shape[-1]:
        return torch.cat((rotate(x[..., :turned], cos, signed_sin), x[..., turned:]), dim=-1)
    cos, signed_sin = cos.to(x.dtype), signed_sin.to(x.dtype)
    return torch.addcmul(x * cos, x.roll(turned // 2, dims=-1), signed_sin)
