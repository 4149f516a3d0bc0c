"""Quantizing tensors to 8 and 4 bits: codes in range, and errors within the bounds of the method at any magnitude."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmcli.storage.quantized_tensors import from_nibbles, nibbles, to_int4, to_int8

GROUP = 32


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Matrices [N, K] of normal numbers of any magnitude, some with outliers, zeros or very different groups."""
    rows, groups = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = generator.standard_normal((rows, groups, GROUP))
    if draw(st.booleans()):
        values *= 10.0 ** generator.uniform(-4, 0, (rows, groups, 1))
    if draw(st.booleans()):
        values[generator.random(values.shape) < 0.02] *= 30
    values[generator.random(values.shape) < draw(st.sampled_from([0.0, 0.5, 0.98]))] = 0
    values *= 10.0 ** draw(st.integers(-25, 25))
    return torch.from_numpy(values.reshape(rows, -1)).to(draw(st.sampled_from([torch.float32, torch.bfloat16])))


def parts(rows: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``to_int4``'s codes, factors and scale in fp64: [N, groups, GROUP], [N, groups, 1], [N, 1, 1]."""
    codes, factors, scale = to_int4(rows)
    assert codes.dtype == factors.dtype == torch.int8
    assert scale.dtype == torch.float32
    assert codes.shape == rows.shape
    assert factors.shape == (len(rows), rows.shape[1] // GROUP)
    assert scale.shape == (len(rows), 1)
    return (
        codes.double().numpy().reshape(len(rows), -1, GROUP),
        factors.double().numpy()[..., None],
        scale.double().numpy()[..., None],
    )


def grouped(rows: Tensor) -> np.ndarray:
    return rows.double().numpy().reshape(len(rows), -1, GROUP)


@given(matrices())
def test_int8_error_is_at_most_half_a_step(rows: Tensor) -> None:
    codes, scale = to_int8(rows)
    assert codes.dtype == torch.int8
    assert scale.dtype == torch.float32
    assert scale.shape == (len(rows), 1)
    wide, step = rows.double(), scale.double()
    assert ((codes.double() * step - wide).abs() <= 0.5001 * step).all()
    for row, numbers in zip(rows, codes, strict=True):
        assert numbers.int().abs().max() == (127 if row.any() else 0)  # the finest step that clips nothing


@given(matrices())
def test_int4_codes_and_factors_are_in_range_and_their_products_fit_8_bits(rows: Tensor) -> None:
    codes, factors, scale = parts(rows)
    assert codes.min() >= -8
    assert codes.max() <= 7
    assert ((np.abs(factors) >= 1) & (np.abs(factors) <= 15)).all()
    assert (np.abs(codes * factors) <= 127).all()
    assert (scale > 0).all()


@given(matrices())
def test_int4_factors_are_at_least_as_good_as_spanning_and_nearly_the_best(rows: Tensor) -> None:
    """The error is at most that of the factor that just spans a group, and near that of the best of all 30."""
    codes, factors, scale = parts(rows)
    wide = grouped(rows)
    error = np.square(codes * factors * scale - wide).sum(-1)

    def error_with(factor: np.ndarray) -> np.ndarray:
        return np.square(np.clip(np.round(wide / (factor * scale)), -8, 7) * factor * scale - wide).sum(-1)

    peaks = np.take_along_axis(wide, np.abs(wide).argmax(-1)[..., None], -1)
    spanning = np.clip(np.round(np.abs(peaks) / scale / 8), 1, 15) * np.where(peaks > 0, -1, 1)
    slack = 1e-4 * np.square(wide).sum(-1)
    assert (error <= error_with(spanning) + slack).all()
    least = np.min([error_with(np.full_like(factors, sign * f)) for f in range(1, 16) for sign in (-1, 1)], axis=0)
    assert (error >= least - slack).all()
    assert error.sum() <= 1.5 * least.sum() + slack.sum()


def test_int4_loses_less_than_plain_absmax_quantization() -> None:
    """Plain means codes from -7 to 7 and a float scale per group, its largest value / 7."""
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((64, 256)))
    codes, factors, scale = parts(rows)
    wide = grouped(rows)
    step = np.abs(wide).max(-1, keepdims=True) / 7
    plain = np.square(np.round(wide / step) * step - wide).sum()
    ours = np.square(codes * factors * scale - wide).sum()
    assert ours < 0.9 * plain
    assert ours / np.square(wide).sum() < 0.0075


@given(matrices(), st.integers(-8, 8))
def test_scaling_the_weights_scales_only_the_scale(rows: Tensor, exponent: int) -> None:
    factor = 2.0**exponent
    for quantize in (to_int8, to_int4):
        *codes, scale = quantize(rows)
        *same, scaled = quantize(rows * factor)
        for a, b in zip(codes, same, strict=True):
            assert torch.equal(a, b)
        nonzero = rows.any(-1)
        assert torch.equal(scaled[nonzero], scale[nonzero] * factor)


@given(matrices())
def test_rows_are_quantized_independently(rows: Tensor) -> None:
    for quantize in (to_int8, to_int4):
        for number in range(len(rows)):
            for alone, together in zip(quantize(rows[number : number + 1]), quantize(rows), strict=True):
                assert torch.equal(alone[0], together[number])


@pytest.mark.parametrize("size", [3e38, 1e30, 1e20, 1e-20, 1e-28])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_magnitudes_whose_squares_overflow_or_underflow(size: float, dtype: torch.dtype) -> None:
    unit = torch.linspace(-1, 1, 2 * GROUP).view(1, -1)
    rows = (unit * size).to(dtype)
    codes, scale = to_int8(rows)
    assert codes.min() == -127
    assert codes.max() == 127
    values = codes.double() * scale.double()
    assert ((values - rows.double()).abs() <= 0.505 / 127 * size).all()
    codes4, factors, scale4 = parts(rows)
    assert np.square(codes4 * factors * scale4 / size - grouped(rows) / size).mean() < 1.5e-3


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-42])
def test_zero_and_tiny_rows_become_zeros(value: float) -> None:
    rows = torch.full((3, 2 * GROUP), value)
    rows[1] = torch.linspace(-1, 1, 2 * GROUP)
    rows[1, GROUP:] = value  # a tiny group in an ordinary row
    for codes, *rest in (to_int8(rows), to_int4(rows)):
        assert not codes[0].any()
        assert not codes[1, GROUP:].any()
        assert codes[1, :GROUP].any()
        assert all(part.isfinite().all() and part.all() for part in rest)


def test_a_single_nonzero_weight_is_kept_exactly() -> None:
    """A row's largest value is 8 x 15 steps, whatever its sign."""
    for sign in (1, -1):
        rows = torch.zeros(1, GROUP)
        rows[0, 5] = sign * 0.37
        codes, factors, scale = parts(rows)
        assert (codes * factors * scale).reshape(-1)[5] == pytest.approx(sign * 0.37, rel=1e-6)
        assert codes[0, 0, 5] == -8
        assert factors.item() == -15 * sign


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_from_nibbles_inverts_nibbles(rows: int, pairs: int, seed: int) -> None:
    codes = torch.from_numpy(np.random.default_rng(seed).integers(-8, 8, (rows, 2 * pairs), dtype=np.int8))
    packed = nibbles(codes)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, pairs)
    assert torch.equal(from_nibbles(packed), codes)
    expected = [[(int(a) & 15) + 16 * (int(b) & 15) for a, b in row.reshape(-1, 2)] for row in codes.numpy()]
    assert packed.tolist() == expected


def test_every_byte_holds_two_numbers() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(2, 128)
    numbers = from_nibbles(every)
    assert set(numbers.flatten().tolist()) == set(range(-8, 8))
    assert torch.equal(nibbles(numbers), every)
