"""How well a model predicts a text: the surprisal of each of its tokens, in memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli.generate.steps import PREFILL_CHUNK
from llmcli.model.transformer import Transformer

MOST_LOGITS = 2**23  # numbers held at once, 32 MiB: 8,000 tokens of a vocabulary of 150,000 would take 5 GB


def surprisals(model: Transformer, ids: Sequence[int]) -> Tensor:
    """-ln p of every token but the first given those before it, in nats, fp32 [len(ids) - 1] on the CPU.

    A text longer than the context is read in windows that overlap by half, so that each token is
    predicted from all that comes before it, or at least from half a context.
    """
    context = model.config.max_position_embeddings
    parts = []
    for start, first in windows(len(ids), context):
        parts.append(_window(model, ids[start : start + context + 1], first - start))
    return torch.cat(parts)


def _window(model: Transformer, ids: Sequence[int], first: int) -> Tensor:
    """Of ids that fit the context with one more, the surprisals behind position ``first`` and later ones."""
    cache, scores = model.new_cache(), []
    cache.planned = len(ids) - 1
    rows = max(MOST_LOGITS // model.config.vocab_size, 1)
    targets = torch.tensor(ids[1:], device=model.device)
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, PREFILL_CHUNK):
            chunk = torch.tensor([ids[start : min(start + PREFILL_CHUNK, len(ids) - 1)]], device=model.device)
            x = model.hidden(chunk, cache)[0]  # [T, C]
            for place in range(0, len(x), rows):
                logits = model.unembed(x[place : place + rows]).float()
                goal = targets[start + place : start + place + len(logits)]
                scores.append(F.cross_entropy(logits, goal, reduction="none").cpu())
    return torch.cat(scores)[first:]


def windows(length: int, context: int) -> list[tuple[int, int]]:
    """(start, first position that counts) of windows of ``context`` inputs that score each token of ``length`` once."""
    places = [(0, 0)]
    while places[-1][0] + context < length - 1:
        start = places[-1][0] + context // 2
        places.append((start, places[-1][0] + context))
    return places
