"""The short causal convolution that recurrent mixers begin with."""

from __future__ import annotations

import torch
from torch import Tensor


def causal_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor) -> tuple[Tensor, Tensor]:
    """Convolve each feature of x [B, T, C] along its own and the preceding positions, by ``weight`` [C, kernel].

    ``past`` holds the last kernel - 1 positions before x, [B, kernel - 1, C]. Returns the result [B, T, C] and the
    last kernel - 1 positions up to the end of x. In fp32.
    """
    T, before = x.shape[1], past.shape[1]
    joined = torch.cat((past, x.float()), dim=1)
    taps = weight.float().T
    out = joined[:, :T] * taps[0]
    for offset in range(1, before + 1):
        out = torch.addcmul(out, joined[:, offset : offset + T], taps[offset])
    if bias is not None:
        out = out + bias.float()
    return out, joined[:, T:].clone()
