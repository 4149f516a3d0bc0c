"""The lens: what the model would predict if it stopped after each layer.

The plain one is the logit lens (nostalgebraist 2020); ``lens_fitting`` has the fitted ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llmcli.explain.forward_pass import ForwardPass, observe, tolerance
from llmcli.explain.lenses.fitted_lens import FittedLens, LensKind
from llmcli.explain.report import Check, Claim, Report, VocabEntry, check, relative_error, vocab_entry
from llmcli.explain.selection import Layers, Text, find_layers, find_position, find_token, token_ids
from llmcli.generation.distribution import Softmax, argmax, kl_divergence, rank
from llmcli.generation.loaded import LoadedModel
from llmcli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class LensRow:
    """The prediction after one layer; ``layer`` None is the embedding, before the first. ``rank`` 0 is the top token.

    ``kl`` is the divergence D(final‖layer) in bits: the information lost by stopping here; ``plain_kl`` is that of the
    plain lens, and the rest is the report's lens's. ``p`` and ``logprob`` are
    computed in fp64, because in fp32 a probability below 1e-45 is 0.
    """

    layer: int | None
    top: VocabEntry
    p_top: float
    p: float  # of the target
    logprob: float  # of the target, nats
    rank: int  # of the target
    entropy: float  # bits
    kl: float  # bits
    plain_kl: float  # bits


@dataclass(frozen=True)
class LensReport(Report):
    """One row per layer, at one position of a text."""

    model: str
    position: int
    at: VocabEntry
    target: VocabEntry
    lens: Literal["plain"] | LensKind
    rows: tuple[LensRow, ...]
    check: Check


def lens(
    loaded: LoadedModel,
    text: Text,
    *,
    position: int | str = -1,
    token: int | str | None = None,
    layers: Layers | None = None,
    fitted: FittedLens | None = None,
    parse_special: bool = False,
) -> LensReport:
    """Apply the final norm and the head after each layer: p_l = softmax(cap(U N(x_l))).

    x_l is the residual stream [C] after layer l at ``position``, N the final norm, recomputed for each layer, U the
    head and cap the softcap, if the model has one. Follows ``token`` through the layers, or if None the model's own
    prediction. With ``layers`` None the report has all of them and the embedding. ``fitted`` replaces x_l by
    A_l x_l + b_l, in the last layer's basis.
    Raises LlmcliError if the text is empty or longer than the context, or a position, token or layer does not exist.
    """
    ids = token_ids(loaded, text, parse_special=parse_special)
    model, tokenizer = loaded.model, loaded.tokenizer
    position = find_position(tokenizer, ids, position)
    target = None if token is None else find_token(tokenizer, token, model.config.vocab_size)
    shown: list[int | None] = [*find_layers(model.config, layers)]
    if layers is None:
        shown.insert(0, None)
    return lens_of(loaded, observe(model, ids[: position + 1]), target, shown, fitted)


def lens_of(
    loaded: LoadedModel,
    observed: ForwardPass,
    target: int | None,
    shown: Sequence[int | None],
    fitted: FittedLens | None = None,
) -> LensReport:
    """``lens`` at the last position of a pass that was observed, for the layers ``shown``; None is the embedding."""
    model, tokenizer = loaded.model, loaded.tokenizer
    target = int(observed.logits.argmax()) if target is None else target
    with torch.inference_mode():
        # One by one, as in generation. The last row's logits are the model's, up to the rounding of keys and values.
        residual = [x[0] for x in observed.trace.residual]
        plain = [model.unembed(x)[0] for x in residual]
        logits = plain
        if fitted is not None:
            logits = [model.unembed(fitted.transport(n, x))[0] for n, x in enumerate(residual)]
    after = {None if n == 0 else n - 1: parts for n, parts in enumerate(zip(logits, plain, strict=True))}
    difference = float((logits[-1] - observed.logits).abs().max())
    error = relative_error(difference, float(observed.logits.abs().max()))
    return LensReport(
        model=loaded.name,
        position=len(observed.ids) - 1,
        at=vocab_entry(tokenizer, observed.ids[-1]),
        target=vocab_entry(tokenizer, target),
        lens="plain" if fitted is None else fitted.kind,
        rows=tuple(_row(layer, *after[layer], logits[-1], target, tokenizer) for layer in shown),
        check=check(
            Claim("the last layer's logits equal the model's", error, tolerance(model, model.new_cache().dtype))
        ),
    )


def _row(layer: int | None, logits: Tensor, plain: Tensor, final: Tensor, target: int, tokenizer: Tokenizer) -> LensRow:
    logps, top = logits.double().log_softmax(dim=-1), argmax(logits)
    return LensRow(
        layer=layer,
        top=vocab_entry(tokenizer, top),
        p_top=math.exp(logps[top]),
        p=math.exp(logps[target]),
        logprob=float(logps[target]),
        rank=rank(logits, target),
        entropy=Softmax(logits).entropy(),
        kl=float(kl_divergence(final, logits)),
        plain_kl=float(kl_divergence(final, plain)),
    )
