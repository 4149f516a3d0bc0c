"""The view of one logit: which parts of the model pushed it, and which earlier tokens they took that from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.errors import usage_error
from llmcli.explain.forward_pass import ForwardPass, observe, tolerance
from llmcli.explain.heads import Heads, heads_of
from llmcli.explain.report import Check, Claim, Report, VocabEntry, check, relative_error, vocab_entry
from llmcli.generation.loaded import LoadedModel
from llmcli.model.layers import Norm
from llmcli.model.transformer import Transformer


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
    piece: VocabEntry
    difference: float
    layer: int
    head: int


@dataclass(frozen=True)
class WhyReport(Report):
    """The logit of ``token`` beside that of ``other``, before a softcap; ``parts`` sum to ``total``.

    ``sources`` split further what attention adds. ``logits`` are the model's own, after the softcap if it has one.
    """

    model: str
    position: int
    at: VocabEntry
    token: VocabEntry
    other: VocabEntry
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
    reading = observe(model, ids[: position + 1])
    token, other = _pair(reading.logits, token, other)
    logits = reading.logits[[token, other]].cpu()
    split = attribute(model, reading, (token, other))
    parts = _parts(split, learned_positions=model.positions is not None)
    parts.append(("rounding", (logits.double() if softcap is None else split.stream) - split.total))
    return WhyReport(
        model=loaded.name,
        position=position,
        at=vocab_entry(tokenizer, ids[position]),
        token=vocab_entry(tokenizer, token),
        other=vocab_entry(tokenizer, other),
        logits=(float(logits[0]), float(logits[1])),
        softcap=softcap,
        parts=tuple(_part(name, values) for name, values in parts),
        total=_part("total", torch.stack([values for _, values in parts]).sum(dim=0)),
        sources=_sources(loaded, reading.ids, split, heads),
        check=_claims(split, logits, softcap, tolerance(model)),
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
        Source(place, vocab_entry(loaded.tokenizer, ids[place]), difference, *heads[most[place]])
        for place, difference in enumerate(chosen.sum(dim=0).tolist())
    )


def _claims(split: Attribution, logits: Tensor, softcap: float | None, allowed: float) -> Check:
    """The parts against what the model itself gave."""
    total = split.total if softcap is None else softcap * torch.tanh(split.total / softcap)
    error = relative_error(float((total - logits.double()).abs().max()), float(logits.abs().max()))
    added = split.heads.sum(dim=(-1, -2)) + split.attention_bias
    missing = relative_error(float((added - split.attention).abs().max()), float(split.attention.abs().max()))
    return check(
        Claim("the parts without rounding sum to the logits", error, allowed),
        Claim("in each layer heads sum to what attention added", missing, allowed),
    )


@dataclass(frozen=True)
class Attribution:
    """Contributions to the logits of N tokens before a softcap, in fp64, at the last position of a text of S."""

    embedding: Tensor  # [N]
    position: Tensor  # [N], a learned position's; 0 where positions are turned
    heads: Tensor  # [N, L, H, S], by the position looked at
    attention_bias: Tensor  # [N, L]
    mlps: Tensor  # [N, L]
    norm_bias: Tensor  # [N], of the final norm
    stream: Tensor  # [N], the logits of the whole stream, observed: all parts must sum to them
    attention: Tensor  # [N, L], what attention added as a whole, observed: heads and bias must sum to it

    @property
    def total(self) -> Tensor:
        """The sum of all parts, [N]."""
        layers = self.heads.sum(dim=(-1, -2)) + self.attention_bias + self.mlps
        return self.embedding + self.position + layers.sum(dim=-1) + self.norm_bias


def attribute(model: Transformer, reading: ForwardPass, tokens: Sequence[int]) -> Attribution:
    """Split the logits of ``tokens`` that a reading gave."""
    trace, place = reading.trace, len(reading.ids) - 1
    rows = torch.cat([head_row(model, token) for token in tokens]).double() * model.config.logit_scale  # [N, C]
    last = freeze(model.norm, trace.residual[-1][0, -1])
    directions = last.back(rows)
    with torch.inference_mode():
        token = model.embed_tokens(torch.tensor(reading.ids[-1:], device=model.device))[0].double()
        learned = torch.zeros_like(token) if model.positions is None else model.positions.weight[place].double()
        layers = [_attention(heads_of(model, reading, n), directions) for n in range(model.config.num_hidden_layers)]
        heads, biases = (torch.stack(parts, dim=1) for parts in zip(*layers, strict=True))
        return Attribution(
            embedding=directions @ token,
            position=directions @ learned,
            heads=heads,
            attention_bias=biases,
            mlps=torch.stack([directions @ out[0, -1].double() for out in trace.mlp_out], dim=1),
            norm_bias=last.constant(rows),
            stream=directions @ trace.residual[-1][0, -1].double() + last.constant(rows),
            attention=torch.stack([directions @ out[0, -1].double() for out in trace.attn_out], dim=1),
        )


def _attention(heads: Heads, directions: Tensor) -> tuple[Tensor, Tensor]:
    """One layer's contributions: of its heads, [N, H, S], and of its biases, [N]."""
    bias, post = heads.block.attn.out.bias, heads.block.attn_post_norm
    here = directions * heads.block.scale
    constant = torch.zeros(len(here), dtype=here.dtype, device=here.device)
    if post is not None:
        norm = freeze(post, heads.output)
        here, constant = norm.back(here), norm.constant(here)
    pulled = torch.einsum("nc,ckgd->nkgd", here, heads.matrix)
    by_source = torch.einsum("nkgd,ksd,kgs->nkgs", pulled, heads.values, heads.weights).flatten(1, 2)
    return by_source, constant if bias is None else here @ bias.double() + constant


def head_row(model: Transformer, token: int) -> Tensor:
    """The direction in the normed residual stream that the head reads for a token, fp32 [1, C]."""
    if model.head is not None:
        return model.head.dense(slice(token, token + 1))
    row: Tensor = model.embedding(torch.tensor([token], device=model.device)).detach().float()
    return row


@dataclass(frozen=True)
class FrozenNorm:
    """y = gain ⊙ (c - mean(c)) + bias, or without the mean for RMSNorm; the gain holds the vector's own length."""

    gain: Tensor  # [C], fp64
    bias: Tensor | None  # [C], fp64
    centred: bool

    def back(self, direction: Tensor) -> Tensor:
        """The direction [..., C] in the norm's input along which a part adds to ``direction`` in its output."""
        scaled = direction * self.gain
        return scaled - scaled.mean(dim=-1, keepdim=True) if self.centred else scaled

    def constant(self, direction: Tensor) -> Tensor:
        """What the bias adds along ``direction`` [..., C], whatever the input: [...]."""
        return direction.new_zeros(direction.shape[:-1]) if self.bias is None else direction @ self.bias


def freeze(norm: Norm, x: Tensor) -> FrozenNorm:
    """The norm as it acts on x [C]."""
    x = x.double()
    if not norm.rms:
        x = x - x.mean()
    length = (x.square().mean() + norm.eps).sqrt()
    bias = None if norm.bias is None else norm.bias.detach().double()
    return FrozenNorm((norm.weight.detach().double() + norm.offset) / length, bias, centred=not norm.rms)
