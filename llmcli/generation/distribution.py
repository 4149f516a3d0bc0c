"""A distribution over the vocabulary: from logits, in order of probability, and one token drawn from it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from llmcli.errors import LlmcliError

SMALLEST = 2.0**-149  # probability above 0 in fp32


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over the whole vocabulary, in fp32: cutting first would overstate every probability."""
    probs = logits.float().softmax(dim=-1)
    if not bool(torch.isfinite(probs.sum())):
        raise LlmcliError(
            "the model's logits are not numbers",
            "the weights are damaged, or overflow in float16: try --dtype float32",
        )
    return probs


def entropy(probs: Tensor) -> float:
    """Shannon entropy in bits."""
    p = probs.double()
    return float(-torch.special.xlogy(p, p).sum() / math.log(2)) + 0.0


def ranked(values: Tensor, least: float | None = None) -> Tensor:
    """Ids of values [V], of those not below ``least``, by (-value, id).

    On a CPU value and id are packed into one whole number each, because numpy sorts those some fifteen times
    faster than torch sorts floats in a stable way.
    """
    if values.device.type != "cpu":
        order = torch.sort(values, descending=True, stable=True).indices
        return order if least is None else order[: int((values >= least).sum())]
    floats = values.float().numpy() + np.float32(0)  # one zero, not two
    ids = np.arange(len(floats)) if least is None else np.flatnonzero(floats >= np.float32(least))
    bits = floats[ids].view(np.int32)
    bits ^= (bits >> 31) & 0x7FFFFFFF  # whole numbers in the order of the floats
    keys = (~bits).astype(np.int64) << 32 | ids
    keys.sort()
    return torch.from_numpy(keys & 0xFFFFFFFF)


def leading(values: Tensor, count: int) -> Tensor:
    """``ranked`` ids of the ``count`` largest of values [V]."""
    if count >= len(values):
        return ranked(values)
    return ranked(values, float(torch.topk(values, count).values[-1]))[:count]


def intervals(probs: Tensor) -> tuple[Tensor, Tensor]:
    """Ids with p > 0 by (-p, id), and where each one's share of [0, 1) ends, in fp64.

    The ends are shares of their sum, which rounding keeps from being 1; the last is exactly 1.
    """
    ids = ranked(probs, SMALLEST)
    ends = probs[ids].double().cumsum(dim=-1) / probs.double().sum()
    ends[-1] = 1.0
    return ids, ends


def draw(probs: Tensor, u: float) -> int:
    """The token in whose interval u lies: the inverse of the cumulative distribution. 0 <= u < 1."""
    ids, ends = intervals(probs.cpu())
    return int(ids[int(torch.searchsorted(ends, u, right=True))])


def pick(probs: Tensor, u: float | None) -> int:
    """The token drawn by u, or where nothing is drawn (None) the most probable."""
    return int(probs.argmax()) if u is None else draw(probs, u)


def kl_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """Kullback-Leibler divergence D(p‖q) of softmax(logits) from softmax(other), both [..., V]: [...], bits, fp64.

    The bits a token that are lost by expecting q where p is right; 0 only where both are the same.
    """
    p, q = logits.double().log_softmax(dim=-1), other.double().log_softmax(dim=-1)
    terms = torch.where(p.isneginf(), 0.0, p.exp() * (p - q))
    return terms.sum(dim=-1).clamp_min(0) / math.log(2)
