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


def suits(q: Tensor) -> bool:
    """Whether queries [B, H, T, D] are attended faster here than by torch's kernel."""
    many = q.shape[1] * q.shape[2] >= MANY and q.device.type == "cpu" and q.dtype == torch.bfloat16
    return many and not torch.is_grad_enabled() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def attend_blockwise(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T) v of q [B, H, T, D] and k, v [B, K, S, D]: [B, H, T, D].

    Query i sees keys up to S - T + i, and of those what ``mask`` [T, S] allows.
    """
    B, H, T, D = q.shape
    K, S = k.shape[1:3]
    group = H // K
    queries = q.float().reshape(B * K, group, T, D)
    keys, values = k.reshape(B * K, S, D).float().transpose(1, 2), v.reshape(B * K, S, D).float()
    out = torch.empty(B, T, H, D, dtype=q.dtype)
    later = torch.ones(BLOCK, BLOCK, dtype=torch.bool).triu(1)
    with products_in_bfloat16():
        for start in range(0, T, BLOCK):
            stop = min(start + BLOCK, T)
            count, seen = stop - start, S - T + stop
            scores = torch.bmm(queries[:, :, start:stop].reshape(B * K, -1, D), keys[:, :, :seen])
            scores = scores.mul_(scale).view(B * K, group, count, seen)
            if mask is None:
                scores[..., seen - count :].masked_fill_(later[:count, :count], float("-inf"))
            else:
                scores.masked_fill_(~mask[start:stop, :seen], float("-inf"))
            weights = scores.softmax(dim=-1).view(B * K, -1, seen)
            block = torch.bmm(weights, values[:, :seen]).view(B, H, count, D)
            out[:, start:stop] = block.transpose(1, 2)
    return out.transpose(1, 2)


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
