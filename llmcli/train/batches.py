"""Encoded examples -> shuffled windows of context length with what is to be learnt in them, the same for a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.errors import LlmcliError

IGNORED = -100  # the target that cross entropy passes over
OPEN = 64  # windows with room left that are tried for the next example


@dataclass(frozen=True)
class Encoded:
    """An example as ids, from BOS to EOS, of which those from place ``first`` on are to be learnt."""

    ids: list[int]
    first: int = 1


class Batches:
    """Windows of context+1 ids (input and, one later, target), in an order drawn anew for every epoch.

    ``rows`` are ids [W, context + 1], ``learnt`` tells which of them are to be predicted.
    """

    def __init__(self, rows: Tensor, learnt: Tensor, *, batch_size: int, seed: int) -> None:
        self.rows, self.learnt, self.batch_size, self.seed = rows, learnt, batch_size, seed

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one step, each [batch_size, context]: a pure function of seed and step."""
        places = places_at(step, len(self.rows), self.batch_size, self.seed)
        ids = self.rows[places].long()
        return ids[:, :-1], ids[:, 1:].masked_fill(~self.learnt[places, 1:], IGNORED)


def cut(examples: Sequence[Encoded], *, context: int, batch_size: int, seed: int) -> Batches:
    """All examples shuffled once and laid end to end, so a window may hold the end of one and the start of another.

    Errors: too little text for a single window.
    """
    ids = torch.tensor(
        [i for n in shuffled(len(examples), seed, -1).tolist() for i in examples[n].ids], dtype=torch.int32
    )
    windows = (len(ids) - 1) // context
    if not windows:
        raise LlmcliError(
            f"the corpus comes to {len(ids)} tokens, less than one context of {context}",
            "give more text or a smaller --context",
        )
    rows = ids[: windows * context + 1].unfold(0, context + 1, context)
    return Batches(rows, torch.ones_like(rows, dtype=torch.bool), batch_size=batch_size, seed=seed)


def pack(examples: Sequence[Encoded], *, context: int, batch_size: int, seed: int) -> Batches:
    """Each example whole in one window, with others as long as there is room, but for what one is longer than that.

    What is left of a window stays empty. Errors: no example has anything to learn within a window.
    """
    windows: list[list[Encoded]] = []
    room: list[tuple[int, int]] = []  # (left, window) of those that are still tried
    for n in shuffled(len(examples), seed, -1).tolist():
        example = Encoded(examples[n].ids[: context + 1], examples[n].first)
        size = len(example.ids)
        if example.first >= size:
            continue  # its prompt alone is longer than a window
        fitting = min((place for place in room if place[0] >= size), default=None)  # the fullest: least is wasted
        if fitting is None:
            windows.append([])
            fitting = (context + 1, len(windows) - 1)
        else:
            room.remove(fitting)
        windows[fitting[1]].append(example)
        room = [*room, (fitting[0] - size, fitting[1])][-OPEN:]
    if not windows:
        raise LlmcliError(f"no example fits a context of {context}", "give shorter prompts or a larger --context")
    rows = torch.zeros(len(windows), context + 1, dtype=torch.int32)
    learnt = torch.zeros_like(rows, dtype=torch.bool)
    for row, wanted, window in zip(rows, learnt, windows, strict=True):
        place = 0
        for example in window:
            end = place + len(example.ids)
            row[place:end] = torch.tensor(example.ids, dtype=torch.int32)
            wanted[place + example.first : end] = True
            place = end
    return Batches(rows, learnt, batch_size=batch_size, seed=seed)


def places_at(step: int, count: int, batch_size: int, seed: int) -> Tensor:
    """Which of ``count`` windows make a step: all of them once in every epoch, in an order of its own."""
    numbers = range(step * batch_size, (step + 1) * batch_size)
    orders = {epoch: shuffled(count, seed, epoch) for epoch in {number // count for number in numbers}}
    return torch.stack([orders[number // count][number % count] for number in numbers])


def shuffled(count: int, seed: int, epoch: int) -> Tensor:
    """The numbers below ``count`` in some order; that of documents within the text is of epoch -1."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch + 1))
