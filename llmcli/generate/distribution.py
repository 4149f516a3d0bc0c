"""A distribution over the vocabulary: from logits, in order of probability, and one token drawn from it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from llmcli.errors import LlmcliError

FEW = 256  # candidates to order first: nearly always enough


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


def leading(values: Tensor, count: int) -> Tensor:
    """Ids of at least the ``count`` largest of values [V], ties with the last included, by (-value, id).

    Beside sorting all, this costs next to nothing where few are asked for.
    """
    if count >= len(values):
        return torch.sort(values, descending=True, stable=True).indices
    least = torch.topk(values, count, sorted=True).values[-1]
    ids = (values >= least).nonzero().flatten()
    return ids[torch.sort(values[ids], descending=True, stable=True).indices]


def widening(probs: Tensor) -> Iterator[Tensor]:
    """``leading`` ids for more and more of the tokens that have a chance, up to all of them."""
    alive = int((probs > 0).sum())
    count = FEW
    while count < alive:
        yield leading(probs, count)[:alive]
        count *= 16
    yield leading(probs, alive)[:alive]


def intervals(probs: Tensor) -> tuple[Tensor, Tensor]:
    """Ids with p > 0 by (-p, id), and where each one's share of [0, 1) ends, in fp64.

    The ends are shares of their sum, which rounding keeps from being 1; the last is exactly 1.
    """
    alive = int((probs > 0).sum())
    ids = leading(probs, alive)[:alive]
    ends = _ends(probs, ids)
    ends[-1] = 1.0
    return ids, ends


def draw(probs: Tensor, u: float) -> int:
    """The token in whose interval u lies: the inverse of the cumulative distribution. 0 <= u < 1."""
    probs = probs.cpu()
    for ids in widening(probs):
        ends = _ends(probs, ids)
        if ends[-1] > u:
            break
    place = int(torch.searchsorted(ends, u, right=True))
    return int(ids[min(place, len(ids) - 1)])


def pick(probs: Tensor, u: float | None) -> int:
    """The token drawn by u, or where nothing is drawn (None) the most probable."""
    return int(probs.argmax()) if u is None else draw(probs, u)


def _ends(probs: Tensor, ids: Tensor) -> Tensor:
    """Where the shares of the first ``ids`` end, in units of the whole distribution's sum."""
    return probs[ids].double().cumsum(dim=-1) / probs.double().sum()
