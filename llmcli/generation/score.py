"""How well a model predicts a text: the surprisal of each of its tokens, in memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli.generation.steps import PREFILL_CHUNK
from llmcli.model.transformer import Transformer

MOST_LOGITS = 2**23  # numbers held at once, 32 MiB: 8,000 tokens of a vocabulary of 150,000 would take 5 GB


def surprisals(model: Transformer, ids: Sequence[int]) -> Tensor:
    """-ln p of every token but the first given those before it, in nats, fp32 [len(ids) - 1] on the CPU."""
    return torch.cat([nats(logits, goals) for logits, goals in predictions(model, ids)])


def nats(logits: Tensor, goals: Tensor) -> Tensor:
    """Cross entropy under each of logits [n, V], in nats, [n] on the CPU.

    ``goals`` are the tokens that came [n], or the probabilities of all [n, V].
    """
    return F.cross_entropy(logits, goals, reduction="none").cpu()


@torch.inference_mode()
def predictions(model: Transformer, ids: Sequence[int], context: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits [n, V] before every token but the first, fp32, and those tokens [n]: a few at a time, in order.

    A text longer than the ``context`` (the model's, if not given) is read in windows that overlap by half,
    so that each token is predicted from all that comes before it, or at least from half a context.
    """
    context = context or model.config.max_position_embeddings
    rows = max(MOST_LOGITS // model.config.vocab_size, 1)
    for start, first in windows(len(ids), context):
        inside = ids[start : start + context + 1]
        goals = torch.tensor(inside[1:], device=model.device)
        cache = model.new_cache()
        cache.planned = len(goals)
        for begin in range(0, len(goals), PREFILL_CHUNK):
            end = min(begin + PREFILL_CHUNK, len(goals))
            x = model.hidden(torch.tensor([inside[begin:end]], device=model.device), cache)[0]  # [T, C]
            for place in range(max(first - start, begin), end, rows):
                behind = slice(place, min(place + rows, end))
                yield model.unembed(x[place - begin : behind.stop - begin]).float(), goals[behind]


def windows(length: int, context: int) -> list[tuple[int, int]]:
    """(start, first position that counts) of windows of ``context`` inputs that score each token of ``length`` once."""
    places = [(0, 0)]
    while places[-1][0] + context < length - 1:
        start = places[-1][0] + context // 2
        places.append((start, places[-1][0] + context))
    return places
