"""Why a logit is what it is: the contribution of each component, and of each token that attention copied from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmcli.errors import usage_error
from llmcli.explain.forward_pass import ForwardPass, observe, tolerance
from llmcli.explain.report import NOT_IN_JSON, Check, Claim, Report, VocabEntry, check, relative_error, vocab_entry
from llmcli.explain.residual_stream import Attribution, attribute
from llmcli.explain.selection import (
    Head,
    Layers,
    Text,
    find_heads,
    find_position,
    find_token,
    name_heads,
    token_ids,
)
from llmcli.generation.distribution import check_finite
from llmcli.generation.loaded import LoadedModel
from llmcli.model.config import ModelConfig

ROUNDING = "rounding"  # the name of the part that the dtype's rounding adds
HEAD = re.compile(r"L(\d+)\.H(\d+)")  # the name of a head


@dataclass(frozen=True)
class Contribution:
    """What one component adds to the logits of the two tokens, and to their difference."""

    name: str  # "embedding", "L0.H3", "L0 MLP", "L0 embedding" (a per-layer one), …
    token: float
    other: float
    difference: float


@dataclass(frozen=True)
class SourceContribution:
    """What the heads add to the difference by attending to one position; head ``head`` of ``layer`` adds the most."""

    position: int
    piece: VocabEntry
    difference: float
    layer: int
    head: int


@dataclass(frozen=True)
class StrongestPart:
    """The component, or the head, that adds most to the difference, in the direction of the total.

    For a head, ``position`` is the one it gets most of that from, and ``from_position`` how much; otherwise None.
    """

    name: str
    difference: float
    position: int | None
    piece: VocabEntry | None  # at ``position``
    from_position: float | None


@dataclass(frozen=True)
class WhyReport(Report):
    """The logits of ``token`` and ``other``, before a softcap, as sums: ``parts`` sum to ``total``.

    ``sources`` split what attention adds by attended position; a model without attention has none, and no
    ``strongest_head``. ``logits`` are the model's own, after a softcap.
    """

    model: str
    position: int
    at: VocabEntry
    token: VocabEntry
    other: VocabEntry
    logits: tuple[float, float]
    softcap: float | None
    parts: tuple[Contribution, ...]
    total: Contribution
    sources: tuple[SourceContribution, ...]
    strongest: StrongestPart
    strongest_head: StrongestPart | None
    check: Check
    heads: str = field(metadata=NOT_IN_JSON)  # those that ``sources`` are of, such as "all heads"


def why(
    loaded: LoadedModel,
    text: Text,
    *,
    position: int | str = -1,
    token: int | str | None = None,
    other: int | str | None = None,
    layers: Layers | None = None,
    head: Head | None = None,
    parse_special: bool = False,
) -> WhyReport:
    """Split the logits of two tokens after ``position`` into contributions: (gamma * c / s) . U_v, with s frozen.

    c is what a component wrote, gamma and s the final norm's weight and scale, U_v the head's row of the token.
    ``token`` None is the most probable token, ``other`` None the most probable one that differs from it. ``layers``, or
    one ``head``, choose the heads whose contribution is split by attended position.
    Raises LlmcliError if both tokens are the same, the text is empty or longer than the context, or a position, token,
    layer or head does not exist.
    """
    ids = token_ids(loaded, text, parse_special=parse_special)
    model, tokenizer, config = loaded.model, loaded.tokenizer, loaded.model.config
    position = find_position(tokenizer, ids, position)
    unasked = layers is None and head is None and not config.attending
    heads = [] if unasked else find_heads(config, layers, head)
    token = None if token is None else find_token(tokenizer, token, config.vocab_size)
    other = None if other is None else find_token(tokenizer, other, config.vocab_size)
    observed = observe(model, ids[: position + 1])
    return why_of(loaded, observed, token, other, heads, name_heads(config, layers, head))


def why_of(
    loaded: LoadedModel,
    observed: ForwardPass,
    token: int | None,
    other: int | None,
    heads: Sequence[tuple[int, int]],
    named: str,
) -> WhyReport:
    """``why`` at the last position of a pass that was observed; ``named`` is what the report calls the ``heads``."""
    model, tokenizer, config = loaded.model, loaded.tokenizer, loaded.model.config
    pair = _pair(observed.logits, token, other)
    logits = observed.logits[list(pair)].cpu()
    split = attribute(model, observed, pair)
    check_finite(split.heads, "attention weights or values")  # attention may have ignored them in computing the logits
    parts = _parts(split, config)
    parts.append((ROUNDING, (logits.double() if config.logit_softcap is None else split.stream) - split.total))
    contributions = tuple(_contribution(name, values) for name, values in parts)
    total = _contribution("total", torch.stack([values for _, values in parts]).sum(dim=0))
    direction = -1 if total.difference < 0 else 1

    def strongest(parts: Sequence[Contribution]) -> StrongestPart:
        return _strongest(loaded, observed.ids, split, parts, direction)

    parts_of_heads = [part for part in contributions if HEAD.fullmatch(part.name)]
    return WhyReport(
        model=loaded.name,
        position=len(observed.ids) - 1,
        at=vocab_entry(tokenizer, observed.ids[-1]),
        token=vocab_entry(tokenizer, pair[0]),
        other=vocab_entry(tokenizer, pair[1]),
        logits=(float(logits[0]), float(logits[1])),
        softcap=config.logit_softcap,
        parts=contributions,
        total=total,
        sources=_sources(loaded, observed.ids, split, heads),
        strongest=strongest([part for part in contributions if part.name != ROUNDING]),
        strongest_head=strongest(parts_of_heads) if parts_of_heads else None,
        check=_check(split, logits, config.logit_softcap, tolerance(model)),
        heads=named,
    )


def _pair(logits: Tensor, token: int | None, other: int | None) -> tuple[int, int]:
    """The token to explain and the one to compare it with, by default the two most probable."""
    ranking = logits.sort(descending=True, stable=True).indices[:2].tolist()
    if token is None:
        token = ranking[1] if ranking[0] == other else ranking[0]
    if other is None:
        other = ranking[1] if ranking[0] == token else ranking[0]
    if token == other:
        raise usage_error("a token cannot be compared with the same token", kind="same-tokens")
    return token, other


def _parts(split: Attribution, config: ModelConfig) -> list[tuple[str, Tensor]]:
    """The name and contribution [2] of every component, in the model's order."""
    named = [("embedding", split.embedding)]
    if config.position == "learned":
        named.append(("position", split.position))
    heads = split.heads.sum(dim=-1)  # [2, L, H]
    for layer in range(heads.shape[1]):
        if config.has_attention(layer):
            named += [(f"L{layer}.H{head}", heads[:, layer, head]) for head in range(heads.shape[2])]
        if config.has_mixer(layer):
            named.append((f"L{layer} mixer", split.mixers[:, layer]))
        if split.attention_bias[:, layer].any():
            named.append((f"L{layer} attention bias", split.attention_bias[:, layer]))
        if config.has_mlp(layer):
            named.append((f"L{layer} MLP", split.mlps[:, layer]))
        if config.hidden_size_per_layer_input is not None:
            named.append((f"L{layer} embedding", split.inputs[:, layer]))
    if split.norm_bias.any():
        named.append(("final norm bias", split.norm_bias))
    if split.head_bias.any():
        named.append(("head bias", split.head_bias))
    return named


def _contribution(name: str, values: Tensor) -> Contribution:
    token, other = values.tolist()
    return Contribution(name, token, other, token - other)


def _sources(
    loaded: LoadedModel, ids: Sequence[int], split: Attribution, heads: Sequence[tuple[int, int]]
) -> tuple[SourceContribution, ...]:
    """What ``heads`` (layer, head) add to the difference of the two logits, by attended position."""
    if not heads:
        return ()
    differences = split.heads[0] - split.heads[1]  # [L, H, S]
    chosen = torch.stack([differences[layer, head] for layer, head in heads])  # [heads, S]
    strongest = chosen.abs().argmax(dim=0).tolist()
    return tuple(
        SourceContribution(n, vocab_entry(loaded.tokenizer, ids[n]), difference, *heads[strongest[n]])
        for n, difference in enumerate(chosen.sum(dim=0).tolist())
    )


def _strongest(
    loaded: LoadedModel, ids: Sequence[int], split: Attribution, parts: Sequence[Contribution], direction: int
) -> StrongestPart:
    """The one of ``parts`` that adds most in ``direction``, 1 or -1, and the position that it reads if it is a head."""
    part = max(parts, key=lambda part: direction * part.difference)
    head = HEAD.fullmatch(part.name)
    if head is None:
        return StrongestPart(part.name, part.difference, None, None, None)
    by_position = split.heads[0, int(head[1]), int(head[2])] - split.heads[1, int(head[1]), int(head[2])]  # [S]
    position = int((direction * by_position).argmax())
    piece = vocab_entry(loaded.tokenizer, ids[position])
    return StrongestPart(part.name, part.difference, position, piece, float(by_position[position]))


def _check(split: Attribution, logits: Tensor, softcap: float | None, allowed: float) -> Check:
    """Compare the sums of the contributions with the model's own logits, and with what attention was seen to add."""
    total = split.total if softcap is None else softcap * torch.tanh(split.total / softcap)
    error = relative_error(float((total - logits.double()).abs().max()), float(logits.abs().max()))
    summed = split.heads.sum(dim=(-1, -2)) + split.attention_bias + split.mixers
    missing = relative_error(float((summed - split.attention).abs().max()), float(split.attention.abs().max()))
    return check(
        Claim("the parts without rounding sum to the logits", error, allowed),
        Claim("in each layer the heads sum to what attention added", missing, allowed),
    )
