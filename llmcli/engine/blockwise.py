"""Attention of many bfloat16 queries on a CPU, by blocks of queries: two matrix products and a softmax each.

torch's kernel for this uses a fraction of what the processor's bfloat16 instructions can do; oneDNN's
products use it all. Scores and weights stay in fp32, so nothing is rounded that the kernel would not round.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

BLOCK = 64  # queries: few enough for their scores to stay in the processor's cache
MANY = 2048  # queries of all heads, from which on it pays
MOST_SCORES = 2**24  # of a block, 64 MiB: what it may take of memory


def suits(q: Tensor, k: Tensor) -> bool:
    """Whether q [B, H, T, D] and k [B, K, S, D] are attended faster here than by torch's kernel."""
    here = q.device.type == "cpu" and q.dtype == torch.bfloat16 and not torch.is_grad_enabled()
    B, H, T, _ = q.shape
    pays = H * T >= MANY and B * H * BLOCK * k.shape[2] <= MOST_SCORES
    return here and pays and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def attend_blockwise(q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float) -> Tensor:
    """softmax(scale q k^T) v of q [B, H, T, D] and k, v [B, K, S, D]: [B, H, T, D].

    Query i sees the keys up to S - T + i, of those the last ``window`` unless that is None.
    """
    B, H, T, D = q.shape
    K, S = k.shape[1:3]
    queries = q.float().reshape(B * K, H // K, T, D)
    keys, values = k.reshape(B * K, S, D).float().transpose(1, 2), v.reshape(B * K, S, D).float()
    out = torch.empty(B, T, H, D, dtype=q.dtype)
    room = torch.empty(B * H * min(BLOCK, T) * S)  # for the scores of a block: fresh memory costs as much as they do
    with products_in_bfloat16():
        for start in range(0, T, BLOCK):
            stop = min(start + BLOCK, T)
            count, last = stop - start, S - T + stop
            before = 0 if window is None else last - count - window + 1  # the first key that the first query sees
            first = max(before, 0)
            scores = room[: B * H * count * (last - first)].view(B * K, -1, last - first)
            torch.bmm(queries[:, :, start:stop].reshape(B * K, -1, D), keys[:, :, first:last], out=scores)
            hide(scores.mul_(scale).view(B, H, count, -1), count, None if window is None else before - first)
            torch.softmax(scores, dim=-1, out=scores)
            block = torch.bmm(scores, values[:, first:last]).view(B, H, count, D)
            out[:, start:stop] = block.transpose(1, 2)
    return out.transpose(1, 2)


def hide(scores: Tensor, count: int, early: int | None) -> None:
    """Give -inf to what the ``count`` queries of ``scores`` [..., count, keys] may not see, in place.

    The first sees no key behind the ``count``-th last, each later one a key more. Where ``early`` is
    not None, the first sees the keys from that on (0, or below it: all), each later one a key less.
    """
    square = torch.ones(count, count, dtype=torch.bool)
    scores[..., -count:].masked_fill_(square.triu(1), float("-inf"))
    if early is not None:
        near = scores[..., :count]
        near.masked_fill_(square[:, : near.shape[-1]].tril(early - 1), float("-inf"))


@contextmanager
def products_in_bfloat16() -> Iterator[None]:
    """Have oneDNN multiply fp32 matrices as bfloat16 ones, which these are but for the weights, into fp32."""
    backends: Any = torch.backends
    onednn = backends.mkldnn.matmul
    before = onednn.fp32_precision
    onednn.fp32_precision = "bf16"
    try:
        yield
    finally:
        onednn.fp32_precision = before
