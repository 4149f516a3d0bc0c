"""The view of layers: what would the model say if it stopped at each? The logit lens (nostalgebraist 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.explain.forward_pass import observe
from llmcli.explain.report import Check, Claim, Report, VocabEntry, check, vocab_entry
from llmcli.generation.distribution import entropy, kl_divergence, probabilities
from llmcli.generation.loaded import LoadedModel
from llmcli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class LensRow:
    """The model's words after a layer; None is the embedding, before the first. ``rank`` 0 is the favourite."""

    layer: int | None
    top: VocabEntry
    p_top: float
    p: float  # of the target, like the rank
    rank: int
    entropy: float  # bits
    kl: float  # bits, of the model's own distribution from this one: what is lost by stopping here


@dataclass(frozen=True)
class LensReport(Report):
    """One row a layer, at one position of a text."""

    model: str
    position: int
    at: VocabEntry
    target: VocabEntry
    rows: tuple[LensRow, ...]
    check: Check


def lens_report(
    loaded: LoadedModel, ids: Sequence[int], position: int, layers: Sequence[int | None], target: int | None
) -> LensReport:
    """Final norm and head on the residual stream after each layer: p_l = softmax(cap(U N(x_l))).

    The norm is computed anew for every layer. Of ``layers`` None is the embedding; ``target`` is the token to
    follow, the model's favourite if None.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    reading = observe(model, ids[: position + 1])
    target = int(reading.logits.argmax()) if target is None else target
    with torch.inference_mode():
        # One by one, as the loop does it: so the last are the very bits of the model's logits.
        logits = [model.unembed(x[0].to(model.dtype))[0].float() for x in reading.trace.residual]
    behind = {None if n == 0 else n - 1: part for n, part in enumerate(logits)}
    rows = [_row(layer, behind[layer], reading.logits, target, tokenizer) for layer in layers]
    difference = float((logits[-1] - reading.logits).abs().max())
    return LensReport(
        model=loaded.name,
        position=position,
        at=vocab_entry(tokenizer, ids[position]),
        target=vocab_entry(tokenizer, target),
        rows=tuple(rows),
        check=check(Claim("the last layer's logits are the model's", difference, 0.0)),
    )


def _row(layer: int | None, logits: Tensor, final: Tensor, target: int, tokenizer: Tokenizer) -> LensRow:
    probs = probabilities(logits)
    p, best = probs[target], int(probs.argmax())
    return LensRow(
        layer=layer,
        top=vocab_entry(tokenizer, best),
        p_top=float(probs[best]),
        p=float(p),
        rank=int((probs > p).sum()) + int((probs[:target] == p).sum()),
        entropy=entropy(probs),
        kl=float(kl_divergence(final, logits)),
    )
