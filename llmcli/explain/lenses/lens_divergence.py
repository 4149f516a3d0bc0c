"""How far lenses are from the final prediction: their divergence D(final‖layer), by layer.

Shapes: N windows, T positions, P of them measured, C hidden size, L layers, V vocabulary size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmcli.explain.lenses.fitted_lens import FittedLens
from llmcli.explain.lenses.residual_streams import streams_of
from llmcli.generation.distribution import kl_divergence
from llmcli.model.transformer import Transformer

STRIDE = 3  # every third position is measured: logits of a large vocabulary are expensive
HEAD_ROWS = 2**13  # rows of the head that are in memory in fp64 at a time


def measured(windows: Tensor) -> int:
    """Return how many positions of ids [N, T] ``divergences`` measures."""
    return windows[:, ::STRIDE].numel()


@torch.no_grad()
def divergences(model: Transformer, windows: Tensor, lens: FittedLens | None) -> Tensor:
    """Return D(final‖layer) in bits after the embedding and each layer, for ids [N, T]: fp64 [N, L + 1].

    ``lens`` None is the plain one. Each number is a mean over every third position.
    """
    rows: list[list[float]] = []
    for ids in windows:
        streams = [x[0, ::STRIDE] for x in streams_of(model, ids[None])]
        final = model.unembed(streams[-1])
        moved = (x if lens is None else lens.transport(number, x) for number, x in enumerate(streams))
        rows.append([float(kl_divergence(final, model.unembed(x)).mean()) for x in moved])
    return torch.tensor(rows, dtype=torch.float64)


@torch.no_grad()
def exact_divergences(model: Transformer, ids: Tensor, lens: FittedLens) -> Tensor:
    """Return ``divergences`` of one window, ids [T], with the lens, the final norm and the head in fp64: [L + 1]."""
    streams = [x[0, ::STRIDE].double() for x in streams_of(model, ids[None])]
    matrices, biases = lens.matrices.to(model.device), lens.biases.to(model.device)
    final = exact_logits(model, streams[-1])
    found = []
    for x, matrix, bias in zip(streams[:-1], matrices, biases, strict=True):
        moved = torch.einsum("ij,pj->pi", matrix.double(), x) + bias.double()
        found.append(float(kl_divergence(final, exact_logits(model, moved)).mean()))
    return torch.tensor([*found, 0.0], dtype=torch.float64)


def exact_logits(model: Transformer, x: Tensor) -> Tensor:
    """Return what ``model.unembed`` computes, in fp64: [..., V] of x [..., C], fp64."""
    norm, head = model.norm, model.embedding if model.head is None else model.head
    x = x if norm.rms else x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.scale().double()
    x = x if norm.bias is None else x + norm.bias.double()
    logits = torch.cat([x @ rows.double().T for rows in torch.split(head.weight, HEAD_ROWS)], dim=-1)
    if model.head is not None and model.head.bias is not None:
        logits = logits + model.head.bias.double()
    return model.bounded(logits)
