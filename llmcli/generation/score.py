"""How well a model predicts a text: the surprisal of each token, in memory that does not grow with the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llmcli.generation.distribution import check_finite
from llmcli.generation.reading import PREFILL_CHUNK
from llmcli.model.transformer import Transformer

MAX_LOGITS = 2**23  # numbers in memory at a time, 32 MiB; 8,000 tokens x a vocabulary of 150,000 would take 5 GB


def surprisals(model: Transformer, ids: Sequence[int]) -> Tensor:
    """-ln p of every token but the first, given those before it: nats, fp32 [len(ids) - 1] on the CPU."""
    return torch.cat([nats(logits, targets) for logits, targets in predictions(model, ids)])


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each row of logits [n, V] in nats, [n] on the CPU.

    ``targets`` are the actual tokens [n], or a probability for every token [n, V].
    """
    if targets.is_floating_point():
        expected = (targets * logits).sum(dim=-1)
    else:
        expected = logits.gather(-1, targets[:, None])[:, 0]
    return (logits.logsumexp(dim=-1) - expected).cpu()


@torch.inference_mode()
def predictions(model: Transformer, ids: Sequence[int], context: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, for a few tokens at a time, the logits that predict them, fp32 [n, V], and the tokens [n].

    Covers every token but the first, in order. A text longer than ``context`` (default: the model's) is read in windows
    that overlap by half, so that each token is predicted from all earlier tokens, or at least from half a context.
    """
    context = context or model.config.max_position_embeddings
    rows = max(MAX_LOGITS // model.config.vocab_size, 1)
    for start, first in windows(len(ids), context):
        inside = ids[start : start + context + 1]
        targets = torch.tensor(inside[1:], device=model.device)
        cache = model.new_cache()
        cache.planned = len(targets)
        for begin in range(0, len(targets), PREFILL_CHUNK):
            end = min(begin + PREFILL_CHUNK, len(targets))
            x = model.hidden(torch.tensor([inside[begin:end]], device=model.device), cache)[0]  # [T, C]
            for row in range(max(first - start, begin), end, rows):
                stop = min(row + rows, end)
                logits = model.unembed(x[row - begin : stop - begin]).float()
                check_finite(logits)
                yield logits, targets[row:stop]


def windows(length: int, context: int) -> list[tuple[int, int]]:
    """The windows of ``context`` inputs in which each of ``length`` tokens is scored once.

    Each is a pair: its start, and the first position that it scores.
    """
    found = [(0, 0)]
    while found[-1][0] + context < length - 1:
        start = found[-1][0] + context // 2
        found.append((start, found[-1][0] + context))
    return found
