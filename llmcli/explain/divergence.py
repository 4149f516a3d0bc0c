"""How far one distribution is from another."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def divergence(logits: Tensor, other: Tensor) -> Tensor:
    """Kullback-Leibler divergence D(p‖q) of softmax(logits) from softmax(other), both [..., V]: [...], bits, fp64.

    The bits a token that are lost by expecting q where p is right; 0 only where both are the same.
    """
    p, q = logits.double().log_softmax(dim=-1), other.double().log_softmax(dim=-1)
    terms = torch.where(p.isneginf(), 0.0, p.exp() * (p - q))
    return terms.sum(dim=-1).clamp_min(0) / math.log(2)
