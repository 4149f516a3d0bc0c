"""Two models on one text: what fine-tuning changed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.errors import usage_error
from llmcli.explain.report import Check, Report, VocabEntry, Windows, check, vocab_entry
from llmcli.explain.scoring import check_scorable, cross_entropy_claim, rescoring_claim, text_chunks, windows_of
from llmcli.explain.selection import Text, check_loaded, token_ids
from llmcli.generation.distribution import Softmax, kl_divergence
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.score import nats, predictions
from llmcli.storage.checkpoint import Progress

Pair = tuple[LoadedModel, LoadedModel]


@dataclass(frozen=True)
class ComparedToken:
    """One token under both models: ``logprobs`` in nats, ``delta`` the second minus the first.

    ``kl`` is D(first‖second) in bits, over the whole vocabulary; ``favourites`` are each model's most probable token.
    """

    position: int
    piece: VocabEntry
    chunk: str
    logprobs: tuple[float, float]
    delta: float
    kl: float
    favourites: tuple[VocabEntry, VocabEntry]


@dataclass(frozen=True)
class CompareReport(Report):
    """All tokens except the first. ``other_favourite`` is the fraction of positions where the favourites differ.

    ``windows`` is None if the text fits into the smaller context.
    """

    models: tuple[str, str]
    tokens: tuple[ComparedToken, ...]
    bits_per_byte: tuple[float, float]
    mean_kl: float
    other_favourite: float
    windows: Windows | None
    check: Check


def compare(
    first: LoadedModel,
    second: LoadedModel,
    text: Text,
    *,
    parse_special: bool = False,
    progress: Progress | None = None,
) -> CompareReport:
    """Score ``text`` with both models, in windows of the smaller context, over the tokens that both have.

    ``progress`` receives the number of tokens compared and their total.
    Raises LlmcliError if the models have different tokenizers, or the text has fewer than two tokens.
    """
    pair = (first, second)
    ids = shared_ids(pair, text, parse_special)
    context, vocab_size = shared_sizes(pair)
    chunks, size = text_chunks(first.tokenizer, ids)
    tokens, sums = _tokens(pair, ids, chunks, context, vocab_size, progress)
    bits = [-sum(token.logprobs[n] for token in tokens) / math.log(2) for n in (0, 1)]
    mean_kl = sum(token.kl for token in tokens) / len(tokens)
    return CompareReport(
        models=(first.name, second.name),
        tokens=tokens,
        bits_per_byte=(bits[0] / max(size, 1), bits[1] / max(size, 1)),
        mean_kl=mean_kl,
        other_favourite=sum(token.favourites[0] != token.favourites[1] for token in tokens) / len(tokens),
        windows=windows_of(len(ids), context),
        check=check(
            *(
                rescoring_claim(loaded, ids, [token.logprobs[n] for token in tokens], context, vocab_size)
                for n, loaded in enumerate(pair)
            ),
            cross_entropy_claim(
                "mean surprisal and KL",
                [bits[0] / len(tokens), bits[1] / len(tokens), mean_kl],
                [total / len(tokens) for total in sums],
            ),
        ),
    )


def shared_sizes(pair: Pair) -> tuple[int, int]:
    """The smaller of two contexts, and the number of tokens that both models have."""
    context = min(loaded.model.config.max_position_embeddings for loaded in pair)
    # Some models pad their embedding with rows that belong to no token, and not always to the same size.
    return context, min(pair[0].tokenizer.size, *(loaded.model.config.vocab_size for loaded in pair))


def shared_ids(pair: Pair, text: Text, parse_special: bool) -> list[int]:
    """The ids of ``text``. Raises LlmcliError unless they are the same for both models."""
    first, second = pair
    check_loaded(first)
    check_loaded(second)
    hint = "compare a model with one that was fine-tuned from it"
    if not first.tokenizer.has_tokens_of(second.tokenizer):
        raise usage_error(f"{first.name} and {second.name} have different tokenizers", hint)
    ids, other = (token_ids(loaded, text, parse_special=parse_special, any_length=True) for loaded in pair)
    if ids != other:
        raise usage_error(f"{first.name} and {second.name} split this text into different tokens", hint)
    check_scorable(ids)
    return ids


def _tokens(
    pair: Pair,
    ids: Sequence[int],
    chunks: Sequence[str],
    context: int,
    vocab_size: int,
    progress: Progress | None,
) -> tuple[tuple[ComparedToken, ...], list[float]]:
    """A row per token; and for the check, in nats, the sums of both models' surprisals and of KL.

    The models read the text in step, so that only a few logits are in memory at a time.
    """
    tokenizer = pair[0].tokenizer
    rows, sums = [], [0.0, 0.0, 0.0]
    steps = zip(*(_predictions(loaded, ids, context, vocab_size) for loaded in pair), strict=True)
    for position, ((a, nats_a), (b, nats_b)) in enumerate(steps, start=1):
        logprobs = tuple(Softmax(logits).logprob(ids[position]) for logits in (a, b))
        rows.append(
            ComparedToken(
                position=position,
                piece=vocab_entry(tokenizer, ids[position]),
                chunk=chunks[position - 1],
                logprobs=(logprobs[0], logprobs[1]),
                delta=logprobs[1] - logprobs[0],
                kl=float(kl_divergence(a, b)),
                favourites=(vocab_entry(tokenizer, int(a.argmax())), vocab_entry(tokenizer, int(b.argmax()))),
            )
        )
        sums = [total + more for total, more in zip(sums, (nats_a, nats_b, cross_entropy_kl(a, b)), strict=True)]
        if progress is not None:
            progress(position, len(ids) - 1)
    return tuple(rows), sums


def cross_entropy_kl(logits: Tensor, other: Tensor) -> float:
    """KL in nats as a difference: the cross entropy of ``other`` under ``logits``' distribution minus its entropy."""
    both = torch.stack([other, logits]).double()
    costs = nats(both, both[1:].softmax(dim=-1).expand(2, -1))
    return float(costs[0] - costs[1])


def _predictions(
    loaded: LoadedModel, ids: Sequence[int], context: int, vocab_size: int
) -> Iterator[tuple[Tensor, float]]:
    """For each token but the first: the logits [vocab_size] that predict it, on the CPU, and its surprisal in nats."""
    for logits, targets in predictions(loaded.model, ids, context):
        known = logits[:, :vocab_size]
        yield from zip(known.cpu(), nats(known, targets).tolist(), strict=True)
