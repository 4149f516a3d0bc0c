"""Chunks of positions, which recurrent mixers compute together by matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64  # positions that are computed together
FEW = 8  # up to so many positions, one after the other is faster


def chunked(x: Tensor) -> Tensor:
    """x [B, H, T] or [B, H, T, D] as [B, H, chunks, CHUNK, ...]; zeros fill the last chunk."""
    padding = -x.shape[2] % CHUNK
    padded = F.pad(x, (0, padding) if x.dim() == 3 else (0, 0, 0, padding))
    return padded.view(*x.shape[:2], -1, CHUNK, *x.shape[3:])


def decays(total: Tensor) -> Tensor:
    """e^(G_i - G_j) for j <= i, otherwise 0, where G [..., CHUNK] is the sum of log decays: [..., CHUNK, CHUNK]."""
    later = torch.ones(total.shape[-1], total.shape[-1], dtype=torch.bool, device=total.device).triu(1)
    return (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill_(later, float("-inf")).exp_()
