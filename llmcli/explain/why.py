"""The view of one logit: which parts of the model pushed it, and which earlier tokens they took that from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.errors import usage_error
from llmcli.explain.attribution import Attribution, attribute
from llmcli.explain.check import Check, Claim, check, relative
from llmcli.explain.limits import limit
from llmcli.explain.piece import Piece, piece
from llmcli.explain.reading import read
from llmcli.generation.loaded import LoadedModel


@dataclass(frozen=True)
class Part:
    """What one part adds to the logits of the two tokens, and to their difference."""

    name: str  # "embedding", "L0.H3", "L0 MLP", …
    token: float
    other: float
    difference: float


@dataclass(frozen=True)
class Source:
    """What attention to one position adds, summed over the heads looked at; one (``layer``, ``head``) gave most."""

    position: int
    piece: Piece
    difference: float
    layer: int
    head: int


@dataclass(frozen=True)
class WhyReport:
    """The logit of ``token`` beside that of ``other``, before a softcap; ``parts`` sum to ``total``.

    ``sources`` split further what attention adds. ``logits`` are the model's own, after the softcap if it has one.
    """

    model: str
    position: int
    at: Piece
    token: Piece
    other: Piece
    logits: tuple[float, float]
    softcap: float | None
    parts: tuple[Part, ...]
    total: Part
    sources: tuple[Source, ...]
    check: Check


def why_report(
    loaded: LoadedModel,
    ids: Sequence[int],
    position: int,
    *,
    token: int | None = None,
    other: int | None = None,
    heads: Sequence[tuple[int, int]],
) -> WhyReport:
    """Split the logit of ``token`` (None: the favourite) and that of ``other`` (None: the best beside it).

    ``heads`` (layer and head) are those whose attention is split by source. Errors: the two tokens are one.
    """
    model, tokenizer, softcap = loaded.model, loaded.tokenizer, loaded.model.config.logit_softcap
    reading = read(model, ids[: position + 1])
    token, other = _pair(reading.logits, token, other)
    logits = reading.logits[[token, other]].cpu()
    split = attribute(model, reading, (token, other))
    parts = _parts(split, learned_positions=model.positions is not None)
    parts.append(("rounding", (logits.double() if softcap is None else split.stream) - split.total))
    return WhyReport(
        model=loaded.name,
        position=position,
        at=piece(tokenizer, ids[position]),
        token=piece(tokenizer, token),
        other=piece(tokenizer, other),
        logits=(float(logits[0]), float(logits[1])),
        softcap=softcap,
        parts=tuple(_part(name, values) for name, values in parts),
        total=_part("total", torch.stack([values for _, values in parts]).sum(dim=0)),
        sources=_sources(loaded, reading.ids, split, heads),
        check=_claims(split, logits, softcap, limit(model)),
    )


def _pair(logits: Tensor, token: int | None, other: int | None) -> tuple[int, int]:
    """The token to explain and the one to compare it with."""
    ranking = logits.sort(descending=True, stable=True).indices[:2].tolist()
    if token is None:
        token = ranking[1] if ranking[0] == other else ranking[0]
    if other is None:
        other = ranking[1] if ranking[0] == token else ranking[0]
    if token == other:
        raise usage_error("--token and --vs are the same token", "compare it with another")
    return token, other


def _parts(split: Attribution, learned_positions: bool) -> list[tuple[str, Tensor]]:
    """Name and contribution [2] of every part, in the model's order."""
    named = [("embedding", split.embedding)]
    if learned_positions:
        named.append(("position", split.position))
    heads = split.heads.sum(dim=-1)  # [2, L, H]
    for layer in range(heads.shape[1]):
        named += [(_head_name(layer, head), heads[:, layer, head]) for head in range(heads.shape[2])]
        if split.attention_bias[:, layer].any():
            named.append((f"L{layer} attention bias", split.attention_bias[:, layer]))
        named.append((f"L{layer} MLP", split.mlps[:, layer]))
    if split.norm_bias.any():
        named.append(("final norm bias", split.norm_bias))
    return named


def _part(name: str, values: Tensor) -> Part:
    token, other = values.tolist()
    return Part(name, token, other, token - other)


def _head_name(layer: int, head: int) -> str:
    return f"L{layer}.H{head}"


def _sources(
    loaded: LoadedModel, ids: Sequence[int], split: Attribution, heads: Sequence[tuple[int, int]]
) -> tuple[Source, ...]:
    """What ``heads`` (layer and head) took from each position, for the difference of the two logits."""
    taken = split.heads[0] - split.heads[1]  # [L, H, S]
    chosen = torch.stack([taken[layer, head] for layer, head in heads])  # [heads, S]
    most = chosen.abs().argmax(dim=0).tolist()
    return tuple(
        Source(place, piece(loaded.tokenizer, ids[place]), difference, *heads[most[place]])
        for place, difference in enumerate(chosen.sum(dim=0).tolist())
    )


def _claims(split: Attribution, logits: Tensor, softcap: float | None, allowed: float) -> Check:
    """The parts against what the model itself gave."""
    total = split.total if softcap is None else softcap * torch.tanh(split.total / softcap)
    error = relative(float((total - logits.double()).abs().max()), float(logits.abs().max()))
    added = split.heads.sum(dim=(-1, -2)) + split.attention_bias
    missing = relative(float((added - split.attention).abs().max()), float(split.attention.abs().max()))
    return check(
        Claim("the parts without rounding sum to the logits", error, allowed),
        Claim("in each layer heads sum to what attention added", missing, allowed),
    )
