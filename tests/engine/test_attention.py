"""Attention in blocks of queries is as close to float64 as torch's bfloat16 kernel, for every mask and shape."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmcli.engine import attention
from llmcli.engine.attention import MAX_SCORES, MIN_QUERIES, QUERY_BLOCK, attend, attend_in_blocks, pays_in_blocks
from llmcli.model.attention import attention_weights
from llmcli.model.positions import Placement, causal_mask

pytestmark = pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16 instructions")


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    with torch.no_grad():
        yield


def random_qkv(
    B: int, H: int, K: int, T: int, S: int, D: int, seed: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, H, T, D], k and v [B, K, S, D]."""
    torch.manual_seed(seed)
    q, k, v = ((2 * torch.randn(shape)).to(dtype) for shape in ((B, H, T, D), (B, K, S, D), (B, K, S, D)))
    return q, k, v


def error(y: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> float:
    """The largest difference between y and attention computed in float64."""
    exact = F.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), attn_mask=mask, scale=scale, enable_gqa=True
    )
    assert y.shape == exact.shape
    return float((y - exact).abs().max())


@settings(max_examples=40)
@given(
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    past=st.sampled_from([0, 1, 7, 130]),
    count=st.sampled_from([1, QUERY_BLOCK - 1, QUERY_BLOCK, QUERY_BLOCK + 1, 3 * QUERY_BLOCK + 5]),
    window=st.sampled_from([None, 1, 20, 100]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    width=st.sampled_from([24, 16]),  # of values
    seed=st.integers(0, 99),
)
def test_blocks_are_as_accurate_as_torchs_kernel(
    batch: int,
    kv_heads: int,
    group: int,
    past: int,
    count: int,
    window: int | None,
    dtype: torch.dtype,
    width: int,
    seed: int,
) -> None:
    H, S, D, scale = kv_heads * group, past + count, 24, 0.3
    q, k, v = random_qkv(batch, H, kv_heads, count, S, D, seed, dtype)
    v = v[..., :width]
    mask = causal_mask(past, count, q.device, window)
    rounded = (x.bfloat16() for x in (q, k, v))
    theirs = F.scaled_dot_product_attention(*rounded, attn_mask=mask, scale=scale, enable_gqa=True)
    ours = attend_in_blocks(q, k, v, window, scale)
    assert ours.dtype == torch.float32
    assert error(ours, q, k, v, mask, scale) <= 1.5 * error(theirs, q, k, v, mask, scale) + 2**-7


def test_a_wrong_window_shows() -> None:
    q, k, v = random_qkv(1, 4, 2, 70, 70, 24, seed=0)
    right = causal_mask(0, 70, q.device, 20)
    assert error(attend_in_blocks(q, k, v, 20, 0.3), q, k, v, right, 0.3) < 0.05
    for window in (None, 19, 21):
        assert error(attend_in_blocks(q, k, v, window, 0.3), q, k, v, right, 0.3) > 0.5


@pytest.mark.parametrize("past", [0, 100])
def test_attend_uses_blocks_for_many_queries_of_two_bytes(monkeypatch: pytest.MonkeyPatch, past: int) -> None:
    calls = []

    def recorded(*args: object) -> Tensor:
        calls.append(args)
        return attend_in_blocks(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "attend_in_blocks", recorded)
    for T, dtype, count in (
        (MIN_QUERIES // 4, torch.bfloat16, 1),
        (MIN_QUERIES // 4, torch.float16, 1),
        (MIN_QUERIES // 4 - 1, torch.bfloat16, 0),
        (MIN_QUERIES, torch.float32, 0),
    ):
        q, k, v = random_qkv(1, 4, 2, T, past + T, 8, 0, dtype)
        mask = causal_mask(past, T, q.device)
        y = attend(q, k, v, Placement(None, None, mask if past else None), scale=0.5, softcap=None)
        assert len(calls) == count
        assert error(y, q, k, v, mask, 0.5) <= (0.2 if dtype == torch.float16 else 0.1)  # rounded to bfloat16 first
        calls.clear()


def test_training_and_long_contexts_use_torchs_kernel() -> None:
    q = torch.zeros(1, 8, MIN_QUERIES, 8, dtype=torch.bfloat16)
    k = q[:, :2]
    assert pays_in_blocks(q, k)
    most = MAX_SCORES // (8 * QUERY_BLOCK)
    assert pays_in_blocks(q, k[:, :, :1].expand(1, 2, most, 8))
    assert not pays_in_blocks(q, k[:, :, :1].expand(1, 2, most + 1, 8))
    with torch.enable_grad():
        assert not pays_in_blocks(q, k)


def test_the_precision_of_matrix_products_is_restored() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    a, b = torch.randn(2, 64, 64), torch.randn(2, 64, 64)
    product = torch.bmm(a, b)
    attend_in_blocks(*random_qkv(1, 2, 1, 70, 70, 8, seed=0), None, 1.0)
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert torch.equal(torch.bmm(a, b), product)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("count", "window"), [(9, None), (9, 4), (1, None), (20, None)])
def test_sinks_take_part_in_the_softmax(dtype: torch.dtype, count: int, window: int | None) -> None:
    """The kernel with one more key gives what the explicit softmax gives, and a sink takes away what it should."""
    q, k, v = random_qkv(1, 6, 2, count, 20, 16, seed=0, dtype=dtype)
    mask = None if count in (1, 20) else causal_mask(20 - count, count, q.device, window)
    sinks = torch.linspace(-9, 40, 6)
    y = attend(q, k, v, Placement(None, None, mask), scale=0.3, softcap=None, sinks=sinks).float()
    weights = attention_weights(q, k, mask, None, scale=0.3, softcap=None, sinks=sinks)
    expected = weights @ v.float().repeat_interleave(3, dim=1)
    assert (y - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 0.03)
    assert (weights.sum(-1)[:, -1] < 1e-6).all()
    assert (weights.sum(-1)[:, 0] > 0.5).all()
