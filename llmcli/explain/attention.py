"""The view of attention: what does a token look at, head by head, and how much does it take from there?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.explain.forward_pass import observe
from llmcli.explain.heads import adds_up, heads_of
from llmcli.explain.report import Check, Claim, Report, VocabEntry, check, vocab_entry
from llmcli.generation.loaded import LoadedModel


@dataclass(frozen=True)
class Source:
    """How one position is looked at: by the head that looks most, and by all of them on average.

    ``moved`` is the mean length of what a head takes from there, |alpha v W_O| (Kobayashi et al. 2020): a head may look
    where there is next to nothing to take.
    """

    position: int
    piece: VocabEntry
    layer: int  # of the head that looks most
    head: int
    weight: float  # of that head
    mean: float
    moved: float


@dataclass(frozen=True)
class AttendReport(Report):
    """One row a position that the token at ``position`` can see."""

    model: str
    position: int
    at: VocabEntry
    sources: tuple[Source, ...]
    check: Check


@dataclass(frozen=True)
class PatternRow:
    """Where one position's query looks: ``weights`` over all positions up to its own."""

    position: int
    piece: VocabEntry
    weights: tuple[float, ...]


@dataclass(frozen=True)
class AttentionPattern(Report):
    """One head's pattern: the last positions of a text as rows."""

    model: str
    layer: int
    head: int
    rows: tuple[PatternRow, ...]
    pieces: tuple[VocabEntry, ...]  # of all positions
    check: Check


def attend_report(loaded: LoadedModel, ids: Sequence[int], position: int, layers: Sequence[int]) -> AttendReport:
    """What the token at ``position`` looks at, in all heads of ``layers``."""
    model = loaded.model
    reading = observe(model, ids[: position + 1])
    weights = torch.cat([reading.trace.attention[layer][0, :, -1] for layer in layers])  # [layers H, S]
    moved = torch.cat([heads_of(model, reading, layer).lengths for layer in layers])
    most = weights.argmax(dim=0)
    heads = model.config.num_attention_heads
    return AttendReport(
        model=loaded.name,
        position=position,
        at=vocab_entry(loaded.tokenizer, ids[position]),
        sources=tuple(
            Source(
                position=place,
                piece=vocab_entry(loaded.tokenizer, ids[place]),
                layer=layers[int(row) // heads],
                head=int(row) % heads,
                weight=float(weights[row, place]),
                mean=float(weights[:, place].mean()),
                moved=float(moved[:, place].mean()),
            )
            for place, row in enumerate(most.tolist())
        ),
        check=check(_sums(weights), adds_up(model, reading, layers)),
    )


def attention_pattern(
    loaded: LoadedModel, ids: Sequence[int], position: int, head: tuple[int, int], rows: int
) -> AttentionPattern:
    """The pattern of one ``head`` (layer and head), of the last ``rows`` positions up to ``position``."""
    model, (layer, number) = loaded.model, head
    rows = min(rows, position + 1)
    reading = observe(model, ids[: position + 1], rows)
    weights = reading.trace.attention[layer][0, number]  # [rows, S]
    first = position + 1 - len(weights)
    pieces = tuple(vocab_entry(loaded.tokenizer, id) for id in reading.ids)
    ahead = weights.triu(first + 1).abs().max()
    return AttentionPattern(
        model=loaded.name,
        layer=layer,
        head=number,
        rows=tuple(
            PatternRow(place, pieces[place], tuple(row[: place + 1]))
            for place, row in enumerate(weights.tolist(), start=first)
        ),
        pieces=pieces,
        check=check(
            _sums(weights), Claim("nothing ahead is seen", float(ahead), 0.0), adds_up(model, reading, [layer])
        ),
    )


def _sums(weights: Tensor) -> Claim:
    return Claim("each head's weights sum to 1", float((weights.sum(dim=-1) - 1).abs().max()), 1e-5)
