"""Positions: rotary angles, causal masks and windows, for every way of running a model.

Rotary position embedding (Su et al. 2021, RoFormer) rotates pairs of a head's features by an angle proportional to
the position. The layout is Llama's split-half one: of the R rotated features, feature i is paired with i + R/2.
The config's ``rope_type`` says how the angles are scaled for contexts longer than in pre-training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from llmcli.model.config import AlibiConfig, ModelConfig, RopeConfig

Rotation = tuple[Tensor, Tensor]  # cosines and signed sines; see ``rotation``

CACHED_POSITIONS = 256  # positions whose angles are computed together while single tokens are decoded


@dataclass(frozen=True)
class Placement:
    """The positions of a pass's T queries, as the layers of one type need them.

    ``rotation`` rotates queries and keys; None: the layer has no rotary positions. ``window`` is the number of
    positions that a query sees, its own included; None: all. ``mask`` [T, keys] is True (or 0, if it is additive)
    where a query may attend, over the last keys that any query of the pass sees. Without a mask, attention is plain
    causal (T = keys), or there is a single query that sees every key. With ``chunked``, ``mask`` hides more than
    ``window`` does. ``query_scale`` multiplies queries [B, H, T, D], and in layers without rotary positions
    ``unrotated_scale`` does; None: nothing does.
    """

    rotation: Rotation | None
    window: int | None
    mask: Tensor | None
    query_scale: Tensor | None = None
    unrotated_scale: Tensor | None = None
    chunked: bool = False

    def unrotated(self) -> Placement:
        """The same placement without rotary positions."""
        return replace(self, rotation=None, query_scale=self.unrotated_scale)


class Placements(NamedTuple):
    """The placements for layers with full attention and for layers with windowed attention."""

    full: Placement
    windowed: Placement


def visible(queries: Tensor, keys: Tensor, window: int | None = None) -> Tensor:
    """Whether a query at position i may attend to a key at position j: i - window < j <= i. Broadcasts; bool."""
    seen = keys <= queries
    return seen if window is None else seen & (keys > queries - window)


def same_chunk(queries: Tensor, keys: Tensor, size: int) -> Tensor:
    """Whether a query at position i may attend to a key at position j <= i of the same chunk of ``size`` positions."""
    return (keys <= queries) & (keys // size == queries // size)


def causal_mask(past: int, count: int, device: torch.device, window: int | None = None) -> Tensor:
    """``visible`` for queries at past .. past+count-1 and keys at 0 .. past+count-1: [count, past+count]."""
    keys = torch.arange(past + count, device=device)
    return visible(keys[past:].unsqueeze(1), keys, window)


def consecutive(
    config: ModelConfig, past: int, count: int, device: torch.device, rotate_by: Callable[[RopeConfig], Rotation]
) -> Placements:
    """Placements of positions past .. past+count-1, the same for every row of the batch.

    ``rotate_by`` returns the rotation of these positions for a rope config.
    """
    full_rotation, local_rotation = _rotations(config, rotate_by)
    window = config.sliding_window
    mask = causal_mask(past, count, device) if past and count > 1 else None
    queries = torch.arange(past, past + count, device=device).unsqueeze(1)  # [T, 1]
    scales = query_scale(config, queries), unrotated_scale(config, queries)
    full = Placement(full_rotation, None, mask, *scales)
    if window is None:
        return Placements(full, full)
    if config.attention_chunks and count == 1:
        return Placements(full, Placement(local_rotation, past % window + 1, None, *scales))
    if count > 1 and past + count > window:
        seen = min(past, window - 1)
        if config.attention_chunks:
            mask = same_chunk(queries, torch.arange(past - seen, past + count, device=device), window)
        else:
            mask = causal_mask(seen, count, device, window)
    return Placements(full, Placement(local_rotation, window, mask, *scales, chunked=config.attention_chunks))


def single(
    config: ModelConfig,
    position: Tensor,
    keys: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    rotate_by: Callable[[RopeConfig], Rotation],
) -> Placements:
    """Placements of one query per row at ``position``, a tensor, so that the same operations serve every position.

    ``keys`` are the positions in the key buffers of layers with full and with windowed attention; both broadcast
    with ``position`` to the shape of the masks. Attention covers every key in the buffers, so the masks hide all keys
    that the query must not see, including those outside a window.
    """
    full_rotation, local_rotation = _rotations(config, rotate_by)
    scales = query_scale(config, position), unrotated_scale(config, position)
    full = Placement(full_rotation, None, _kernel_mask(config, visible(position, keys[0]), dtype), *scales)
    if config.sliding_window is None:
        return Placements(full, full)
    sees = same_chunk if config.attention_chunks else visible
    seen = sees(position, keys[1], config.sliding_window)
    return Placements(full, Placement(local_rotation, None, _kernel_mask(config, seen, dtype), *scales))


def query_scale(config: ModelConfig, position: Tensor) -> Tensor | None:
    """What the queries at these positions are multiplied by, fp32 in the shape of ``position``; None for nothing."""
    if config.query_scale_beta == 0 or config.rope is None or config.floor_scale is not None:
        return None
    contexts = torch.floor(position / config.rope.original_max_position_embeddings)
    return 1 + config.query_scale_beta * torch.log(1 + contexts)


def unrotated_scale(config: ModelConfig, position: Tensor) -> Tensor | None:
    """``query_scale`` of layers without rotary positions, if only these have one (Nakanishi 2025, scalable softmax)."""
    if config.query_scale_beta == 0 or config.floor_scale is None:
        return None
    return 1 + config.query_scale_beta * torch.log1p(torch.floor((position + 1) / config.floor_scale))


def alibi_scores(alibi: AlibiConfig, count: int, device: torch.device) -> Tensor:
    """What each head adds to the scores of the keys at positions 0 .. count-1: fp32 [H, count].

    Only differences count in a softmax: for a query at position i, -slope (i - j) would do the same.
    """
    slopes = _slopes(alibi, device)[:, None]
    positions = torch.arange(count, device=device)
    if alibi.bfloat16:
        return (slopes.bfloat16() * positions).float() * alibi.scale
    return slopes * positions * alibi.scale


@lru_cache(maxsize=8)
def _slopes(alibi: AlibiConfig, device: torch.device) -> Tensor:
    """The slopes on the device; kept, because a CUDA graph cannot copy from the host."""
    return torch.tensor(alibi.slopes, dtype=torch.float32, device=device)


def _rotations(
    config: ModelConfig, rotate_by: Callable[[RopeConfig], Rotation]
) -> tuple[Rotation | None, Rotation | None]:
    """The rotations for layers with full and with windowed attention; None without rotary positions."""
    if config.rope is None:
        return None, None
    full = rotate_by(config.rope)
    local = full if config.sliding_window is None or config.local_rope is None else rotate_by(config.local_rope)
    return full, local


def _kernel_mask(config: ModelConfig, seen: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask in the form that attention uses without conversion: 0 and -inf for torch's kernels, otherwise bool."""
    if config.attention_softcap is not None or config.attention_sinks or config.alibi is not None:
        return seen
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, float("-inf"))


class Angles:
    """Rotations of a model's positions; those near the last single token are cached.

    Not a buffer of the model: angles are never saved, and stay in fp32.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._kept: dict[RopeConfig, tuple[tuple[object, ...], Rotation]] = {}

    def at(self, rope: RopeConfig, past: int, count: int, span: int, *, device: torch.device) -> Rotation:
        """``rotation`` of positions past .. past+count-1, on ``device``: each [count, R]."""
        if count > 1:
            return self._compute(rope, past, count, span, device)
        offset = past % CACHED_POSITIONS
        key = (span, past - offset, device)
        if rope not in self._kept or self._kept[rope][0] != key:
            self._kept[rope] = key, self._compute(rope, past - offset, CACHED_POSITIONS, span, device)
        cos, signed_sin = self._kept[rope][1]
        return cos[offset : offset + 1], signed_sin[offset : offset + 1]

    def _compute(self, rope: RopeConfig, start: int, count: int, span: int, device: torch.device) -> Rotation:
        frequencies = inverse_frequencies(rope, self.config.head_dim, span).to(device)
        return rotation(frequencies, start, count, rope.attention_factor)


def span(config: RopeConfig | None, length: int) -> int:
    """A number that identifies the angles for a text of ``length`` positions: equal spans mean equal angles.

    It is 0 for most types, whose angles do not depend on the length. Beyond the original context it is 1 for
    "longrope", which uses other factors there, and the length for "dynamic", whose angles change with every position.
    """
    if config is None or length <= config.original_max_position_embeddings:
        return 0
    return {"longrope": 1, "dynamic": length}.get(config.rope_type, 0)


def planned_length(config: RopeConfig | None, prompt: int, total: int) -> int:
    """The length to choose angles for if a prompt of ``prompt`` positions may grow to ``total``.

    "dynamic" angles, and all keys with them, would change with every token, so they are chosen for the total.
    """
    return total if config is not None and config.rope_type == "dynamic" else prompt


def rotation(frequencies: Tensor, start: int, count: int, scale: float = 1.0) -> Rotation:
    """cos and signed sin for positions start .. start+count-1, times ``scale``: each [count, R], for all heads.

    In fp32: bf16 angles would be wrong by radians far into a context.
    """
    positions = torch.arange(start, start + count, dtype=torch.float32, device=frequencies.device)
    angles = torch.outer(positions, frequencies)  # [T, R/2]
    cos, sin = angles.cos() * scale, angles.sin() * scale
    cos = torch.cat((cos, cos), dim=-1)
    signed_sin = torch.cat((-sin, sin), dim=-1)
    return cos, signed_sin


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotate the first R features of x [B, heads, T, D] by the result of ``rotation``."""
    rotated = cos.shape[-1]
    if rotated < x.shape[-1]:
        return torch.cat((rotate(x[..., :rotated], cos, signed_sin), x[..., rotated:]), dim=-1)
    return torch.addcmul(x * cos, x.roll(rotated // 2, dims=-1), signed_sin)


def inverse_frequencies(config: RopeConfig, head_dim: int, span: int = 0) -> Tensor:
    """Radians per position of each of the R/2 rotated pairs, [R/2], fp32 on the CPU; ``span`` is from ``span()``.

    ``head_dim`` counts if the config has none.
    """
    frequencies = _scaled_frequencies(config, config.rotated(head_dim), span)
    if config.rope_type == "proportional":
        frequencies[config.moving(head_dim) // 2 :] = 0
    return -frequencies if config.backwards else frequencies


def _scaled_frequencies(config: RopeConfig, rotated: int, span: int) -> Tensor:
    exponents = torch.arange(0, rotated, 2, dtype=torch.float32, device="cpu") / rotated
    if config.rope_type == "dynamic":
        return 1.0 / _dynamic_theta(config, rotated, span) ** exponents
    frequencies = 1.0 / config.theta**exponents
    if config.rope_type in ("linear", "proportional"):
        return frequencies / config.factor
    if config.rope_type == "llama3":
        return _llama3(frequencies, config)
    if config.rope_type == "yarn":
        return _yarn(frequencies, config, rotated)
    if config.rope_type == "longrope":
        factors = config.long_factor if span else config.short_factor
        return frequencies / torch.tensor(factors)
    return frequencies


def _dynamic_theta(config: RopeConfig, rotated: int, span: int) -> float:
    """The base for NTK-aware scaling that grows with the text (bloc97, emozilla 2023): fast pairs keep their speed."""
    stretch = max(span, config.original_max_position_embeddings) / config.original_max_position_embeddings
    return float(config.theta * (config.factor * stretch - (config.factor - 1)) ** (rotated / (rotated - 2)))


def _llama3(frequencies: Tensor, config: RopeConfig) -> Tensor:
    """Llama 3.1's scaling: slow pairs are slowed by ``factor``, fast ones kept, and others interpolated."""
    turns = config.original_max_position_embeddings * frequencies / (2 * math.pi)  # full turns in the original context
    keep = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / config.factor


def _yarn(frequencies: Tensor, config: RopeConfig, rotated: int) -> Tensor:
    """YaRN's scaling (Peng et al. 2023, section 3.2): its ramp runs over the pair's index, not its frequency."""

    def pair(turns: float) -> float:
        """The index, from the fastest pair, of the pair that makes this many full turns in the original context."""
        longest = config.original_max_position_embeddings / (turns * 2 * math.pi)
        return rotated * math.log(longest) / (2 * math.log(config.theta))

    first, last = pair(config.beta_fast), pair(config.beta_slow)
    if config.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotated - 1)
    width = last - first or 0.001
    slow = ((torch.arange(rotated // 2, dtype=torch.float32) - first) / width).clamp(0.0, 1.0)
    return (1 - slow) * frequencies + slow * frequencies / config.factor
