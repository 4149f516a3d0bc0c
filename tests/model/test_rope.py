"""Rotary position embedding against the formula written out in float64, and the properties that it exists for."""

from __future__ import annotations

import cmath
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmcli.model.config import RopeConfig
from llmcli.model.rope import inverse_frequencies, rotate, rotation

DEFAULT = RopeConfig(theta=10000.0)
LINEAR = RopeConfig(theta=10000.0, rope_type="linear", factor=4.0)
LLAMA_3_1 = RopeConfig(500000.0, "llama3", factor=8.0, original_max_position_embeddings=8192)
LLAMA_3_2 = RopeConfig(500000.0, "llama3", factor=32.0, original_max_position_embeddings=8192)
CONFIGS = [
    DEFAULT,
    LINEAR,
    LLAMA_3_1,
    LLAMA_3_2,
    RopeConfig(500.0, "llama3", factor=8.0, original_max_position_embeddings=32),
]
D = 64

positions = st.integers(0, 4000)
seeds = st.integers(0, 2**16)


def exact_frequency(config: RopeConfig, pair: int, head_dim: int) -> float:
    """Radians per position in float64, scaled as the papers put it: by wavelength."""
    frequency = config.theta ** (-2 * pair / head_dim)
    if config.rope_type == "linear":
        return frequency / config.factor
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


def exactly_turned(x: list[float], position: int, config: RopeConfig) -> list[float]:
    """Each pair (i, i + D/2) as a complex number, times e^(i angle)."""
    half = len(x) // 2
    turned = [
        complex(x[i], x[i + half]) * cmath.exp(1j * position * exact_frequency(config, i, len(x))) for i in range(half)
    ]
    return [z.real for z in turned] + [z.imag for z in turned]


def turned(x: Tensor, position: int, config: RopeConfig = DEFAULT) -> Tensor:
    """One vector [D] at one position."""
    tables = rotation(inverse_frequencies(config, x.shape[-1]), position, 1, torch.float32)
    return rotate(x.view(1, 1, 1, -1), *tables).flatten()


def vector(seed: int) -> Tensor:
    return torch.randn(D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("head_dim", [2, 16, 64, 128])
def test_frequencies_are_those_of_the_formula(config: RopeConfig, head_dim: int) -> None:
    ours = inverse_frequencies(config, head_dim)
    assert ours.dtype == torch.float32
    exact = [exact_frequency(config, pair, head_dim) for pair in range(head_dim // 2)]
    torch.testing.assert_close(ours.double(), torch.tensor(exact, dtype=torch.float64), rtol=1e-5, atol=0.0)


def test_llama3_scaling_by_hand() -> None:
    """Frequencies 1, 0.1, 0.01, 0.001 make 100, 10, 1, 0.1 turns in 628 positions.

    More than 16 turns: kept. At most 1: divided by 4. Ten turns lie (10-1)/(16-1) = 0.6 of the way
    up: 0.6 * 0.1 + 0.4 * 0.1 / 4 = 0.07.
    """
    config = RopeConfig(10000.0, "llama3", factor=4.0, high_freq_factor=16.0, original_max_position_embeddings=628)
    expected = torch.tensor([1.0, 0.07, 0.0025, 0.00025])
    torch.testing.assert_close(inverse_frequencies(config, 8), expected, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("config", CONFIGS[1:])
def test_frequencies_are_those_of_transformers(config: RopeConfig) -> None:
    settings: dict[str, Any] = {"rope_type": config.rope_type, "rope_theta": config.theta, "factor": config.factor}
    if config.rope_type == "llama3":
        settings |= {
            "low_freq_factor": config.low_freq_factor,
            "high_freq_factor": config.high_freq_factor,
            "original_max_position_embeddings": config.original_max_position_embeddings,
        }
    theirs = LlamaConfig(head_dim=D, max_position_embeddings=131072, rope_parameters=settings)
    expected, attention_factor = ROPE_INIT_FUNCTIONS[config.rope_type](theirs, torch.device("cpu"))
    assert attention_factor == 1.0
    torch.testing.assert_close(inverse_frequencies(config, D), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("position", [0, 1, 37, 4095])
def test_turning_is_that_of_the_formula(config: RopeConfig, position: int) -> None:
    x = vector(0)
    exact = torch.tensor(exactly_turned(x.tolist(), position, config), dtype=torch.float64)
    # An fp32 angle of a few thousand radians is off by up to 2^-13.
    assert (turned(x, position, config) - exact).abs().max() <= 1e-5 + position * 2**-22


@given(start=positions, count=st.integers(1, 20))
def test_tables_start_where_asked(start: int, count: int) -> None:
    frequencies = inverse_frequencies(DEFAULT, D)
    for part, whole in zip(
        rotation(frequencies, start, count, torch.float32),
        rotation(frequencies, 0, start + count, torch.float32),
        strict=True,
    ):
        assert part.shape == (count, 1, D)
        assert (part - whole[start:]).abs().max() <= 1e-6


@given(seed=seeds, position=positions)
def test_turning_keeps_the_length(seed: int, position: int) -> None:
    x = vector(seed)
    after = turned(x, position)
    assert abs(float(after.norm() - x.norm())) <= 1e-4
    if position:
        assert float((after - x).norm()) > 1e-3


@given(seed=seeds, query=positions, key=positions, shift=positions)
def test_dot_products_depend_only_on_the_distance(seed: int, query: int, key: int, shift: int) -> None:
    q, k = vector(seed), vector(seed + 1)
    here = turned(q, query) @ turned(k, key)
    there = turned(q, query + shift) @ turned(k, key + shift)
    assert abs(float(here - there)) <= 0.02  # vectors of length 8, angles off by up to 2^-13
    assert abs(float(turned(q, query) @ turned(k, query) - q @ k)) <= 1e-3


def test_dot_products_do_depend_on_the_distance() -> None:
    q, k = vector(0), vector(1)
    products = [float(turned(q, 5 + distance) @ turned(k, 5)) for distance in range(8)]
    assert max(products) - min(products) > 1.0
    assert abs(products[3] - float(turned(q, 5) @ turned(k, 8))) > 0.1, "before and after must differ"


def test_all_heads_and_rows_turn_alike() -> None:
    x = vector(0).repeat(2, 3, 5, 1)  # [B, T, heads, D]
    after = rotate(x, *rotation(inverse_frequencies(DEFAULT, D), 7, 3, torch.float32))
    for position in range(3):
        expected = turned(vector(0), 7 + position)
        assert (after[:, position] - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tables_come_from_fp32_angles(dtype: torch.dtype) -> None:
    frequencies = inverse_frequencies(DEFAULT, D)
    for low, full in zip(
        rotation(frequencies, 3001, 4, dtype), rotation(frequencies, 3001, 4, torch.float32), strict=True
    ):
        assert low.dtype == dtype
        assert torch.equal(low, full.to(dtype))
