"""Attention kernels faster than the reference's: for a single query on a GPU, and for long prompts on a CPU.

For long prompts in half precision on a CPU, attention runs in blocks of queries, each with two matrix products and a
softmax: torch's fused kernel uses a fraction of the processor's bfloat16 throughput, oneDNN's matrix products use all
of it. Scores and weights stay in fp32. Short prompts are computed in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli.model import attention
from llmcli.model.config import AlibiConfig
from llmcli.model.positions import Placement

QUERY_BLOCK = 64  # queries per block: few enough for their scores to stay in the processor's cache
MIN_QUERIES = 2048  # from this many queries of all heads on, blocks are faster
MAX_SCORES = 2**24  # scores per block: limits their memory to 64 MiB


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    placement: Placement,
    *,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None = None,
    alibi: AlibiConfig | None = None,
) -> Tensor:
    """``model.attention.attend`` by the fastest kernel for these shapes, dtype and device."""
    plain = softcap is None and sinks is None and alibi is None
    if plain and not placement.chunked and pays_in_blocks(q, k):
        return attend_in_blocks(q, k, v, placement.window, scale)
    dtype = kernel_dtype(q.dtype, q.device)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if plain and q.shape[2] == 1:
        return attend_single(q, k, v, placement.mask, scale)
    return attention.attend(q, k, v, placement, scale=scale, softcap=softcap, sinks=sinks, alibi=alibi)


def kernel_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What attention computes in for a cache in ``dtype``; additive masks must have it too."""
    return torch.float32 if device.type == "cpu" else dtype


def attend_single(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """``attend`` for one query per text, [B, H, 1, D]."""
    B, H, _, D = q.shape
    K = k.shape[1]
    # The query heads of a group see the same keys, so they can form the query axis: keys are not repeated, no mask is
    # needed if the query sees them all, and the kernel is several times faster than the grouped one.
    out = F.scaled_dot_product_attention(q.reshape(B, K, H // K, D), k, v, mask, scale=scale)
    return out.reshape(B, H, 1, -1)


def pays_in_blocks(q: Tensor, k: Tensor) -> bool:
    """Whether ``attend_in_blocks`` is the faster kernel for q [B, H, T, D] and k [B, K, S, D]."""
    supported = q.device.type == "cpu" and q.dtype.itemsize == 2 and not torch.is_grad_enabled()
    B, H, T, _ = q.shape
    large_enough = H * T >= MIN_QUERIES and B * H * QUERY_BLOCK * k.shape[2] <= MAX_SCORES
    return supported and large_enough and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float) -> Tensor:
    """softmax(scale q k^T) v for q [B, H, T, D], k [B, K, S, D] and v [B, K, S, V]: [B, H, T, V].

    Query i sees the keys up to S - T + i, or the last ``window`` of those.
    """
    B, H, T, D = q.shape
    K, S = k.shape[1:3]
    queries = q.float().reshape(B * K, H // K, T, D)
    keys, values = k.reshape(B * K, S, D).float().transpose(1, 2), v.reshape(B * K, S, -1).float()
    out = torch.empty(B, T, H, v.shape[3])
    buffer = torch.empty(B * H * min(QUERY_BLOCK, T) * S)  # one block's scores: allocating costs as much as computing
    with bfloat16_products():
        for start in range(0, T, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, T)
            count, last = stop - start, S - T + stop
            oldest = 0 if window is None else last - count - window + 1  # the first key that the first query sees
            first = max(oldest, 0)
            scores = buffer[: B * H * count * (last - first)].view(B * K, -1, last - first)
            torch.bmm(queries[:, :, start:stop].reshape(B * K, -1, D), keys[:, :, first:last], out=scores)
            hide(scores.mul_(scale).view(B, H, count, -1), count, None if window is None else oldest - first)
            torch.softmax(scores, dim=-1, out=scores)
            block = torch.bmm(scores, values[:, first:last]).view(B, H, count, -1)
            out[:, start:stop] = block.transpose(1, 2)
    return out.transpose(1, 2)


def hide(scores: Tensor, count: int, oldest: int | None) -> None:
    """Set the scores [..., count, keys] that ``count`` consecutive queries must not see to -inf, in place.

    The first query's own position is the ``count``-th last key; each later query sees one key more. ``oldest`` is the
    index of the first key that the first query sees (all, if it is negative); each later query sees one key fewer at
    that end. None: there is no window.
    """
    square = torch.ones(count, count, dtype=torch.bool)
    scores[..., -count:].masked_fill_(square.triu(1), float("-inf"))
    if oldest is not None:
        near = scores[..., :count]
        near.masked_fill_(square[:, : near.shape[-1]].tril(oldest - 1), float("-inf"))


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Let oneDNN multiply fp32 matrices in bfloat16, accumulating in fp32.

    It rounds the operands to bfloat16.
    """
    backends: Any = torch.backends
    onednn = backends.mkldnn.matmul
    before = onednn.fp32_precision
    onednn.fp32_precision = "bf16"
    try:
        yield
    finally:
        onednn.fp32_precision = before
