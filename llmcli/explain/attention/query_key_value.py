"""One attention head at one position: its query against every key, the weights, and the values that it adds up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from llmcli.explain.attention.layer_heads import attention_output_claim, heads_of
from llmcli.explain.forward_pass import ForwardPass, observe, tolerance
from llmcli.explain.report import Check, Claim, Report, VocabEntry, check, vocab_entry
from llmcli.explain.selection import Head, Text, find_head, find_position, token_ids
from llmcli.generation.distribution import check_finite
from llmcli.generation.loaded import LoadedModel
from llmcli.model.attention import Projection
from llmcli.model.positions import alibi_scores
from llmcli.model.transformer import Block, Transformer


@dataclass(frozen=True)
class KeyMatch:
    """How the query matches the key of one position, and what the head copies from there.

    ``score`` is the product of query and key, scaled and, if the model does that, capped; None outside the layer's
    window. ``weight`` is its softmax, ``size`` the norm of the value as the head adds it, ``copied`` weight times size.
    """

    position: int
    piece: VocabEntry
    score: float | None
    weight: float
    size: float
    copied: float


@dataclass(frozen=True)
class HeadReport(Report):
    """Head ``head`` of ``layer`` at ``position``: one entry in ``keys`` for each position up to its own."""

    model: str
    position: int
    at: VocabEntry
    layer: int
    head: int
    keys: tuple[KeyMatch, ...]
    check: Check


def match_keys(loaded: LoadedModel, text: Text, head: Head, *, position: int | str = -1) -> HeadReport:
    """Return how the query of ``head`` at ``position`` matches the keys: softmax(scale q k^T), and the values.

    Raises LlmcliError if the text is empty or longer than the context, or if a position or head does not exist.
    """
    ids = token_ids(loaded, text)
    model, tokenizer = loaded.model, loaded.tokenizer
    position, (layer, number) = find_position(tokenizer, ids, position), find_head(model.config, head)
    observed = observe(model, ids[: position + 1], position + 1)
    weights = observed.trace.attention[layer][0, number, -1]  # [S]
    check_finite(weights, "attention weights")
    scores = _scores(model, observed, layer, number).masked_fill(weights == 0, float("-inf"))  # outside the window
    sizes = heads_of(model, observed, layer).value_sizes[number]
    error = float((_weights(model, layer, number, scores) - weights).abs().max())
    return HeadReport(
        model=loaded.name,
        position=position,
        at=vocab_entry(tokenizer, ids[position]),
        layer=layer,
        head=number,
        keys=tuple(
            KeyMatch(
                position=n,
                piece=vocab_entry(tokenizer, ids[n]),
                score=float(scores[n]) if weights[n] else None,
                weight=float(weights[n]),
                size=float(sizes[n]),
                copied=float(weights[n]) * float(sizes[n]),
            )
            for n in range(position + 1)
        ),
        check=check(
            Claim("the softmax of the scores equals the weights", error, tolerance(model)),
            attention_output_claim(model, observed, [layer]),
        ),
    )


def _weights(model: Transformer, layer: int, head: int, scores: Tensor) -> Tensor:
    """The softmax of the scores [S], in which the head's sink takes part if it has one: [S]."""
    attention = cast(Block, model.blocks[layer]).attn
    sinks = None if attention is None else attention.sinks
    if sinks is None:
        return scores.softmax(dim=-1)
    return torch.cat((scores, sinks[head].detach().float()[None])).softmax(dim=-1)[:-1]


def _scores(model: Transformer, observed: ForwardPass, layer: int, head: int) -> Tensor:
    """The scores of the last query with all keys, fp32 [S], computed again from the residual stream."""
    attention = cast(Block, model.blocks[layer]).attn
    assert attention is not None
    with torch.inference_mode():
        q = _projected(model, observed, layer).q
        k = _projected(model, observed, attention.kv_layer).k
        group = attention.heads // attention.kv_heads
        scores: Tensor = k[0, head // group].float() @ q[0, head, -1].float() * attention.scale
        if attention.softcap is not None:
            scores = attention.softcap * torch.tanh(scores / attention.softcap)
        if attention.alibi is not None:
            scores = scores + alibi_scores(attention.alibi, len(scores), scores.device)[head]
        return scores


def _projected(model: Transformer, observed: ForwardPass, layer: int) -> Projection:
    """What a layer's attention computes from the observed residual stream: its queries, keys and values."""
    block, count = cast(Block, model.blocks[layer]), len(observed.ids)
    placements = model.placements(0, count, model.span(None, count))
    placement = placements.windowed if block.sliding else placements.full
    placement = placement if block.rotates else placement.unrotated()
    assert block.attn is not None
    x = observed.trace.residual[layer].to(model.dtype)
    return block.attn.project(x if block.attn_norm is None else block.attn_norm(x), placement)
