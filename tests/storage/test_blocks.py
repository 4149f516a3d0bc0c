"""Blocks of quantized weights against the gguf package, and their errors against the bounds of the method."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmcli.files.gguf import BLOCKS
from llmcli.storage.blocks import BLOCK, to_blocks
from llmcli.storage.ggml import from_blocks, row_bytes

KINDS = ("Q8_0", "Q4_0")
LEAST = 2.0**-24  # the smallest scale in fp16


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Matrices [N, K] of normal numbers of several magnitudes, some with outliers, zeros or very different blocks."""
    rows, blocks = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = generator.standard_normal((rows, blocks, BLOCK))
    if draw(st.booleans()):
        values *= 10.0 ** generator.uniform(-4, 0, (rows, blocks, 1))
    if draw(st.booleans()):
        values[generator.random(values.shape) < 0.02] *= 30
    values[generator.random(values.shape) < draw(st.sampled_from([0.0, 0.5, 0.98]))] = 0
    values *= 10.0 ** draw(st.integers(-9, 4))
    columns = blocks * BLOCK - draw(st.sampled_from([0, 0, 1, 17]))
    return torch.from_numpy(values.reshape(rows, -1)[:, :columns]).to(
        draw(st.sampled_from([torch.float32, torch.bfloat16]))
    )


def grouped(rows: Tensor) -> np.ndarray:
    """The rows in fp64 as [N, blocks, BLOCK], zeros after their end."""
    padded = torch.nn.functional.pad(rows.double(), (0, -rows.shape[1] % BLOCK))
    return padded.numpy().reshape(len(rows), -1, BLOCK)


@pytest.mark.parametrize("kind", KINDS)
@given(matrices())
def test_the_gguf_package_restores_the_same_weights(kind: str, rows: Tensor) -> None:
    blocks = to_blocks(rows, kind)
    assert blocks.dtype == torch.uint8
    assert blocks.shape == (len(rows), row_bytes(rows.shape[1], kind))
    ours = from_blocks(blocks, kind, rows.shape[1])
    theirs = torch.from_numpy(dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind]))[:, : rows.shape[1]]
    assert torch.equal(ours, theirs)


@given(matrices())
def test_8_bits_err_by_at_most_half_a_step(rows: Tensor) -> None:
    restored, wide = grouped(from_blocks(to_blocks(rows, "Q8_0"), "Q8_0", rows.shape[1])), grouped(rows)
    step = np.abs(wide).max(-1, keepdims=True) / 127
    # The scale is rounded to fp16, by at most 2^-11 of it or, for tiny scales, half of the smallest one.
    assert (np.abs(restored - wide) <= 0.5 * step + 127 * (step * 2**-11 + LEAST / 2)).all()


@given(matrices())
def test_4_bits_are_at_least_as_good_as_the_scale_that_just_spans_a_block(rows: Tensor) -> None:
    restored, wide = grouped(from_blocks(to_blocks(rows, "Q4_0"), "Q4_0", rows.shape[1])), grouped(rows)
    peaks = np.take_along_axis(wide, np.abs(wide).argmax(-1)[..., None], -1)
    scale = (peaks / -8).astype(np.float16).astype(np.float64)
    spanning = np.clip(np.round(wide / np.where(scale == 0, 1e-30, scale)), -8, 7) * scale
    size = np.sqrt(np.square(wide).mean(-1, keepdims=True))
    importance = np.abs(wide) / np.where(size == 0, 1, size) + 1
    error, plain = ((importance * np.square(each - wide)).sum(-1) for each in (restored, spanning))
    assert (error <= plain * (1 + 1e-3) + BLOCK * LEAST**2).all()


def test_4_bits_lose_less_than_ggufs_own_quantizer() -> None:
    rows = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    theirs = dequantize(gguf.quants.quantize(rows, gguf.GGMLQuantizationType.Q4_0), gguf.GGMLQuantizationType.Q4_0)
    ours = from_blocks(to_blocks(torch.from_numpy(rows), "Q4_0"), "Q4_0", 256).numpy()
    assert np.square(ours - rows).sum() < 0.91 * np.square(theirs - rows).sum()


@pytest.mark.parametrize("kind", KINDS)
@given(matrices())
def test_blocks_are_quantized_independently(kind: str, rows: Tensor) -> None:
    together = to_blocks(rows, kind).view(len(rows), -1, BLOCKS[kind][1])
    for number in range(together.shape[1]):
        alone = to_blocks(rows[:, number * BLOCK : (number + 1) * BLOCK], kind)
        assert torch.equal(alone, together[:, number])


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_and_large_numbers(kind: str) -> None:
    rows = torch.zeros(3, 40)
    rows[1] = 1e9
    restored = from_blocks(to_blocks(rows, kind), kind, 40)
    assert not restored[[0, 2]].any()
    assert restored.isfinite().all()
    assert (restored[1] > 1e5).all()
