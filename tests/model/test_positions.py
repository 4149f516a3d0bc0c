"""Rotary position embedding against its formula in float64 and against transformers, and its defining properties."""

from __future__ import annotations

import cmath
import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmcli.model.config import RopeConfig
from llmcli.model.families import family_of
from llmcli.model.positions import inverse_frequencies, planned_length, rotate, rotation, span

D = 64

DEFAULT = RopeConfig(theta=10000.0)
LINEAR = RopeConfig(theta=10000.0, rope_type="linear", factor=4.0)
DYNAMIC = RopeConfig(theta=10000.0, rope_type="dynamic", factor=4.0, original_max_position_embeddings=2048)
LLAMA_3_1 = RopeConfig(
    theta=500000.0,
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
YARN = RopeConfig(theta=1000000.0, rope_type="yarn", factor=4.0, original_max_position_embeddings=32768)
CONFIGS = [
    DEFAULT,
    RopeConfig(theta=10000.0, partial_rotary_factor=0.25),
    LINEAR,
    RopeConfig(theta=10000.0, rope_type="linear", factor=4.0, partial_rotary_factor=0.5),
    DYNAMIC,
    RopeConfig(theta=10000.0, rope_type="dynamic", factor=2.0, original_max_position_embeddings=700),
    LLAMA_3_1,
    replace(LLAMA_3_1, factor=32.0),
    replace(LLAMA_3_1, theta=500.0, original_max_position_embeddings=32),
    replace(LLAMA_3_1, low_freq_factor=2.0, high_freq_factor=3.0, partial_rotary_factor=0.5),
    YARN,
    replace(YARN, theta=10000.0, factor=16.0, original_max_position_embeddings=4096),
    replace(YARN, truncate=False),
    replace(YARN, beta_fast=8.0, beta_slow=4.0, partial_rotary_factor=0.5),
    replace(YARN, theta=500.0, beta_fast=2.0, beta_slow=2.0, original_max_position_embeddings=100),
]
LENGTHS = [1, 700, 2048, 2049, 5000]  # "dynamic" and "longrope" angles depend on the length


def longrope(pairs: int, **changes: Any) -> RopeConfig:
    """Phi-3's type, with one factor per rotated pair."""
    values: dict[str, Any] = {
        "rope_type": "longrope",
        "original_max_position_embeddings": 2048,
        "short_factor": tuple(1 + 0.05 * pair for pair in range(pairs)),
        "long_factor": tuple(1 + 0.7 * pair for pair in range(pairs)),
    }
    return RopeConfig(**(values | changes))


positions = st.integers(0, 4000)
seeds = st.integers(0, 2**16)


def exact_frequency(config: RopeConfig, pair: int, features: int, length: int = 1) -> float:
    """Radians per position in float64, scaled as in the papers: by wavelength, or by turns in the original context.

    ``features`` is the number of rotated features, ``length`` that of the text.
    """
    frequency = float(config.theta ** (-2 * pair / features))
    if config.rope_type == "linear":
        return frequency / config.factor
    if config.rope_type == "dynamic":
        # NTK-aware: the slowest pair is slowed by the stretch, the fastest not at all, the others in between.
        stretch = max(config.factor * length / config.original_max_position_embeddings - config.factor + 1, 1.0)
        return float(frequency * stretch ** (-2 * pair / (features - 2)))
    if config.rope_type == "longrope":
        long = length > config.original_max_position_embeddings
        return frequency / (config.long_factor if long else config.short_factor)[pair]
    if config.rope_type == "yarn":
        first = pair_with_turns(config, config.beta_fast, features)
        last = pair_with_turns(config, config.beta_slow, features)
        if config.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, features - 1)
        slowed = 0.0 if pair <= first else 1.0 if pair >= last else (pair - first) / (last - first)
        return (1 - slowed) * frequency + slowed * frequency / config.factor
    if config.rope_type == "llama3":
        wavelength = 2 * math.pi / frequency
        longest_kept = config.original_max_position_embeddings / config.high_freq_factor
        shortest_slowed = config.original_max_position_embeddings / config.low_freq_factor
        if wavelength > shortest_slowed:
            return frequency / config.factor
        if wavelength > longest_kept:
            blend = config.original_max_position_embeddings / wavelength - config.low_freq_factor
            blend /= config.high_freq_factor - config.low_freq_factor
            return (1 - blend) * frequency / config.factor + blend * frequency
    return frequency


def pair_with_turns(config: RopeConfig, turns: float, features: int) -> float:
    """The (fractional) pair that makes ``turns`` full turns in the original context, found by bisection."""
    low, high = -1000.0, 1000.0
    for _ in range(200):
        middle = (low + high) / 2
        angle = config.original_max_position_embeddings * config.theta ** (-2 * middle / features)
        low, high = (middle, high) if angle > turns * 2 * math.pi else (low, middle)
    return low


def exactly_rotated(x: list[float], position: int, config: RopeConfig, length: int = 1) -> list[float]:
    """Each pair (i, i + R/2) of the first R features as a complex number, times e^(i angle)."""
    features = round(len(x) * config.partial_rotary_factor)
    half = features // 2
    pairs = [
        complex(x[i], x[i + half]) * cmath.exp(1j * position * exact_frequency(config, i, features, length))
        for i in range(half)
    ]
    scaled = [z * config.attention_factor for z in pairs]
    return [z.real for z in scaled] + [z.imag for z in scaled] + x[features:]


def rotated(x: Tensor, position: int, config: RopeConfig = DEFAULT, length: int = 1) -> Tensor:
    """The vector x [D] rotated for ``position`` in a text of ``length`` tokens."""
    frequencies = inverse_frequencies(config, x.shape[-1], span(config, length))
    tables = rotation(frequencies, position, 1, config.attention_factor)
    return rotate(x.view(1, 1, 1, -1), *tables).flatten()


def vector(seed: int) -> Tensor:
    return torch.randn(D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("length", LENGTHS)
def test_frequencies_follow_the_formula(config: RopeConfig, head_dim: int, length: int) -> None:
    ours = inverse_frequencies(config, head_dim, span(config, length))
    assert ours.dtype == torch.float32
    R = round(head_dim * config.partial_rotary_factor)
    exact = [exact_frequency(config, pair, R, length) for pair in range(R // 2)]
    torch.testing.assert_close(ours.double(), torch.tensor(exact, dtype=torch.float64), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("share", [1.0, 0.75])
def test_longrope_frequencies_follow_the_formula(length: int, share: float) -> None:
    pairs = int(D * share) // 2
    config = longrope(pairs, partial_rotary_factor=share)
    exact = [exact_frequency(config, pair, 2 * pairs, length) for pair in range(pairs)]
    ours = inverse_frequencies(config, D, span(config, length)).double()
    torch.testing.assert_close(ours, torch.tensor(exact, dtype=torch.float64), rtol=1e-5, atol=0.0)


def test_two_features_form_one_pair() -> None:
    assert inverse_frequencies(DEFAULT, 2).tolist() == [1.0]


def test_llama3_scaling_by_hand() -> None:
    """Frequencies 1, 0.1, 0.01, 0.001 make 100, 10, 1, 0.1 turns in 628 positions.

    Above 16 turns a frequency is kept, at 1 turn or less it is divided by 4. Ten turns are (10-1)/(16-1) = 0.6 of the
    way: 0.6 * 0.1 + 0.4 * 0.1 / 4 = 0.07.
    """
    config = RopeConfig(
        theta=10000.0, rope_type="llama3", factor=4.0, high_freq_factor=16.0, original_max_position_embeddings=628
    )
    expected = torch.tensor([1.0, 0.07, 0.0025, 0.00025])
    torch.testing.assert_close(inverse_frequencies(config, 8), expected, rtol=1e-3, atol=0.0)


def test_yarn_scaling_by_hand() -> None:
    """Pairs 0, 1, 2, 3 make 100, 10, 1, 0.1 turns in 628 positions.

    Pair 1 is halfway up a ramp from 100 turns (pair 0) to 1 turn (pair 2): 0.5 * 0.1 + 0.5 * 0.1 / 4 = 0.0625.
    """
    config = RopeConfig(
        theta=10000.0,
        rope_type="yarn",
        factor=4.0,
        beta_fast=100.0,
        beta_slow=1.0,
        truncate=False,
        original_max_position_embeddings=628,
    )
    expected = torch.tensor([1.0, 0.0625, 0.0025, 0.00025])
    torch.testing.assert_close(inverse_frequencies(config, 8), expected, rtol=1e-3, atol=0.0)


def test_dynamic_scaling_by_hand() -> None:
    """At twice the length and factor 2, the slowest pair is slowed by 2 * 2 - 1 = 3, the middle one by sqrt(3)."""
    config = RopeConfig(theta=1000.0, rope_type="dynamic", factor=2.0, original_max_position_embeddings=50)
    expected = torch.tensor([1.0, 0.1 / 3**0.5, 0.01 / 3])
    torch.testing.assert_close(inverse_frequencies(config, 6, span(config, 100)), expected, rtol=1e-5, atol=0.0)


LONG = {"short_factor": [1 + 0.05 * i for i in range(32)], "long_factor": [1 + 0.7 * i for i in range(32)]}
SETTINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "linear", "factor": 4},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "proportional", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "llama3", "factor": 32, "low_freq_factor": 2, "high_freq_factor": 3},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "yarn", "factor": 1.0},
    {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.707},
    {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0},
    {"rope_type": "yarn", "factor": 16.0, "attention_factor": 1.3, "beta_fast": 20, "beta_slow": 2, "truncate": False},
    {"rope_type": "longrope", **LONG},
    {"rope_type": "longrope", **LONG, "factor": 3.0},
    {"rope_type": "longrope", **LONG, "attention_factor": 1.25},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(f"{v}" for v in settings.values())[:40])
@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("length", [1024, 1025, 4000])
def test_frequencies_match_transformers(settings: dict[str, Any], share: float, length: int) -> None:
    """The angles and the attention factor that follow from the same config.json."""
    rope_type = settings["rope_type"]
    context = 1024 if rope_type == "dynamic" else 16384
    settings = {**settings, "rope_theta": 50000.0, "partial_rotary_factor": share}
    if rope_type in ("llama3", "yarn", "longrope"):
        settings["original_max_position_embeddings"] = 1024
    for factors in ("short_factor", "long_factor"):
        if factors in settings:
            settings[factors] = settings[factors][: int(32 * share)]
    # Llama always rotates whole heads, unless the type of scaling says otherwise.
    kind = "llama" if share == 1 or rope_type == "proportional" else "stablelm"
    theirs = LlamaConfig(head_dim=D, max_position_embeddings=context, rope_parameters=copy.deepcopy(settings))
    expected, factor = ROPE_INIT_FUNCTIONS[rope_type](theirs, torch.device("cpu"), seq_len=length)
    raw = {"model_type": kind, "head_dim": D, "max_position_embeddings": context, "rope_parameters": settings}
    config = family_of(raw).parse(raw).rope
    assert config is not None
    assert config.attention_factor == pytest.approx(factor, rel=1e-12)
    torch.testing.assert_close(inverse_frequencies(config, D, span(config, length)), expected, rtol=2e-6, atol=0.0)


@pytest.mark.parametrize(
    ("config", "length", "expected"),
    [
        (None, 5000, 0),
        (DEFAULT, 5000, 0),
        (LINEAR, 5000, 0),
        (LLAMA_3_1, 50000, 0),
        (YARN, 50000, 0),
        (DYNAMIC, 2048, 0),
        (DYNAMIC, 2049, 2049),
        (DYNAMIC, 5000, 5000),
        (longrope(4), 1, 0),
        (longrope(4), 2048, 0),
        (longrope(4), 2049, 1),
        (longrope(4), 9999, 1),
    ],
)
def test_the_span_changes_only_where_the_angles_do(config: RopeConfig | None, length: int, expected: int) -> None:
    assert span(config, length) == expected


@pytest.mark.parametrize(("config", "expected"), [(None, 10), (YARN, 10), (longrope(4), 10), (DYNAMIC, 300)])
def test_only_dynamic_angles_are_chosen_for_the_total_length(config: RopeConfig | None, expected: int) -> None:
    assert planned_length(config, 10, 300) == expected


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("position", [0, 1, 37, 4095])
def test_rotation_follows_the_formula(config: RopeConfig, position: int) -> None:
    x, length = vector(0), position + 1
    exact = torch.tensor(exactly_rotated(x.tolist(), position, config, length), dtype=torch.float64)
    # An fp32 angle of a few thousand radians is off by up to 2^-13.
    assert (rotated(x, position, config, length) - exact).abs().max() <= 1e-5 + position * 2**-22


def test_rotated_features_are_scaled_and_the_others_unchanged() -> None:
    config = RopeConfig(theta=10000.0, partial_rotary_factor=0.5, attention_factor=1.5)
    x = vector(0)
    exact = torch.tensor(exactly_rotated(x.tolist(), 9, config), dtype=torch.float64)
    after = rotated(x, 9, config)
    assert (after - exact).abs().max() <= 1e-5
    assert torch.equal(after[D // 2 :], x[D // 2 :])
    assert float(after[: D // 2].norm() / x[: D // 2].norm()) == pytest.approx(1.5, rel=1e-5)


@given(start=positions, count=st.integers(1, 20))
def test_tables_start_at_the_requested_position(start: int, count: int) -> None:
    frequencies = inverse_frequencies(DEFAULT, D)
    for part, whole in zip(
        rotation(frequencies, start, count),
        rotation(frequencies, 0, start + count),
        strict=True,
    ):
        assert part.shape == (count, D)
        assert (part - whole[start:]).abs().max() <= 1e-6


@given(seed=seeds, position=positions)
def test_rotation_keeps_the_norm(seed: int, position: int) -> None:
    x = vector(seed)
    after = rotated(x, position)
    assert abs(float(after.norm() - x.norm())) <= 1e-4
    if position:
        assert float((after - x).norm()) > 1e-3


@given(seed=seeds, query=positions, key=positions, shift=positions)
def test_dot_products_depend_only_on_the_distance(seed: int, query: int, key: int, shift: int) -> None:
    q, k = vector(seed), vector(seed + 1)
    here = rotated(q, query) @ rotated(k, key)
    there = rotated(q, query + shift) @ rotated(k, key + shift)
    assert abs(float(here - there)) <= 0.02  # vectors of length 8, angles off by up to 2^-13
    assert abs(float(rotated(q, query) @ rotated(k, query) - q @ k)) <= 1e-3


def test_dot_products_change_with_the_distance() -> None:
    q, k = vector(0), vector(1)
    products = [float(rotated(q, 5 + distance) @ rotated(k, 5)) for distance in range(8)]
    assert max(products) - min(products) > 1.0
    assert abs(products[3] - float(rotated(q, 5) @ rotated(k, 8))) > 0.1, "distances of +3 and -3 must differ"


def test_all_heads_and_rows_get_the_same_rotation() -> None:
    x = vector(0).repeat(2, 5, 3, 1)  # [B, heads, T, D]
    after = rotate(x, *rotation(inverse_frequencies(DEFAULT, D), 7, 3))
    for position in range(3):
        expected = rotated(vector(0), 7 + position)
        assert (after[:, :, position] - expected).abs().max() <= 1e-6
