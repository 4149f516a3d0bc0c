"""Attention: which earlier tokens each head looks at, and how much it copies from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmcli.explain.attention.layer_heads import attention_output_claim, heads_of
from llmcli.explain.forward_pass import observe
from llmcli.explain.report import NOT_IN_JSON, Check, Claim, Report, VocabEntry, check, vocab_entry
from llmcli.explain.selection import (
    Head,
    Layers,
    Text,
    attending,
    find_head,
    find_layers,
    find_position,
    name_heads,
    token_ids,
)
from llmcli.generation.distribution import check_finite
from llmcli.generation.loaded import LoadedModel
from llmcli.model.transformer import Transformer

PATTERN_ROWS = 14  # as many rows and columns as fit into 80 terminal columns next to the tokens' text


@dataclass(frozen=True)
class AttendedToken:
    """How much attention one position gets: from the head that gives it most, and from all heads on average.

    ``moved`` is the average norm of what a head copies from there, |alpha v W_O| (Kobayashi et al. 2020): a large
    weight on a small value moves little.
    """

    position: int
    piece: VocabEntry
    layer: int  # of the head with the largest weight
    head: int
    weight: float  # of that head
    mean: float  # over all heads
    moved: float


@dataclass(frozen=True)
class AttendReport(Report):
    """What the token at ``position`` attends to: one entry in ``sources`` for each position up to its own.

    ``sink`` is the mean weight of the heads' learned sinks; None if they have none. ``without_attention`` are those of
    the examined layers that have no heads.
    """

    model: str
    position: int
    at: VocabEntry
    sources: tuple[AttendedToken, ...]
    sink: float | None
    without_attention: tuple[int, ...]
    check: Check
    heads: str = field(metadata=NOT_IN_JSON)  # which ones, such as "all heads"


@dataclass(frozen=True)
class PatternRow:
    """The attention of one query: ``weights`` on all positions up to its own, and the weight of the head's sink."""

    position: int
    piece: VocabEntry
    weights: tuple[float, ...]
    sink: float | None


@dataclass(frozen=True)
class AttentionPattern(Report):
    """One head's attention pattern, a lower triangle: a row for each of the last positions of a text."""

    model: str
    layer: int
    head: int
    rows: tuple[PatternRow, ...]
    pieces: tuple[VocabEntry, ...]  # of all positions
    check: Check


def attend(
    loaded: LoadedModel,
    text: Text,
    *,
    position: int | str = -1,
    layers: Layers | None = None,
    parse_special: bool = False,
) -> AttendReport:
    """Return what the token at ``position`` attends to, in all heads of ``layers`` (None: of the whole model).

    Raises LlmcliError if the text is empty or longer than the context, or the position or a layer does not exist.
    """
    ids = token_ids(loaded, text, parse_special=parse_special)
    model, tokenizer = loaded.model, loaded.tokenizer
    position = find_position(tokenizer, ids, position)
    examined = find_layers(model.config, layers)
    shown = attending(model.config, examined)
    observed = observe(model, ids[: position + 1])
    weights = torch.cat([observed.trace.attention[layer][0, :, -1] for layer in shown])  # [layers * H, S]
    norms = torch.cat([heads_of(model, observed, layer).value_norms for layer in shown])  # [layers * H, S]
    check_finite(weights, "attention weights")
    return AttendReport(
        model=loaded.name,
        position=position,
        at=vocab_entry(tokenizer, ids[position]),
        sources=_sources(loaded, ids, shown, weights, norms),
        sink=float(_unspent(weights).mean()) if model.config.attention_sinks else None,
        without_attention=tuple(layer for layer in examined if layer not in shown),
        check=check(sum_claim(model, weights), attention_output_claim(model, observed, shown)),
        heads=name_heads(model.config, layers),
    )


def _sources(
    loaded: LoadedModel, ids: Sequence[int], layers: Sequence[int], weights: Tensor, norms: Tensor
) -> tuple[AttendedToken, ...]:
    """One entry per position; a row of ``weights`` and ``norms`` [layers * H, S] is a head."""
    heads = loaded.model.config.num_attention_heads
    return tuple(
        AttendedToken(
            position=position,
            piece=vocab_entry(loaded.tokenizer, ids[position]),
            layer=layers[row // heads],
            head=row % heads,
            weight=float(weights[row, position]),
            mean=float(weights[:, position].mean()),
            moved=float(norms[:, position].mean()),
        )
        for position, row in enumerate(weights.argmax(dim=0).tolist())
    )


def attention_pattern(
    loaded: LoadedModel,
    text: Text,
    head: Head,
    *,
    position: int | str = -1,
    rows: int = PATTERN_ROWS,
    parse_special: bool = False,
) -> AttentionPattern:
    """Return the attention pattern of one ``head``, for the last ``rows`` positions up to ``position``.

    Raises LlmcliError if the text is empty or longer than the context, or the position or the head does not exist.
    """
    ids = token_ids(loaded, text, parse_special=parse_special)
    model, tokenizer = loaded.model, loaded.tokenizer
    position, (layer, number) = find_position(tokenizer, ids, position), find_head(model.config, head)
    observed = observe(model, ids[: position + 1], min(rows, position + 1))
    weights = observed.trace.attention[layer][0, number]  # [rows, S]
    check_finite(weights, "attention weights")
    first = position + 1 - len(weights)
    pieces = tuple(vocab_entry(tokenizer, id) for id in observed.ids)
    later = float(weights.triu(first + 1).abs().max())
    sinks = _unspent(weights).tolist() if model.config.attention_sinks else [None] * len(weights)
    return AttentionPattern(
        model=loaded.name,
        layer=layer,
        head=number,
        rows=tuple(
            PatternRow(query, pieces[query], tuple(row[: query + 1]), sink)
            for query, (row, sink) in enumerate(zip(weights.tolist(), sinks, strict=True), start=first)
        ),
        pieces=pieces,
        check=check(
            sum_claim(model, weights),
            Claim("later tokens get a weight of 0", later, 0.0),
            attention_output_claim(model, observed, [layer]),
        ),
    )


def _unspent(weights: Tensor) -> Tensor:
    """What the weights [..., S] of each head leave to its sink: [...]."""
    return (1 - weights.sum(dim=-1)).clamp_min(0)


def sum_claim(model: Transformer, weights: Tensor) -> Claim:
    """Claim that the weights of each head, weights [..., S], sum to 1, or to at most 1 if it has a sink."""
    error = weights.sum(dim=-1) - 1
    if model.config.attention_sinks:
        return Claim("each head's weights sum to at most 1", float(error.max().clamp_min(0)), 1e-5)
    return Claim("each head's weights sum to 1", float(error.abs().max()), 1e-5)
