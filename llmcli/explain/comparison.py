"""The view of two models on one text: what did fine-tuning change?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.errors import usage_error
from llmcli.explain.report import Check, Report, VocabEntry, check, vocab_entry
from llmcli.explain.scoring import as_cross_entropy, check_enough, one_by_one, running
from llmcli.generation.distribution import kl_divergence
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.score import nats, predictions

Pair = tuple[LoadedModel, LoadedModel]


@dataclass(frozen=True)
class Compared:
    """One token under both models: ``logprobs`` in nats, ``delta`` the second less the first, ``kl`` in bits.

    ``kl`` is D(first‖second) over the whole vocabulary; ``favourites`` are what each model would have written.
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
    """Every token but the first. ``other_favourite`` is the share of places where the favourites differ."""

    models: tuple[str, str]
    tokens: tuple[Compared, ...]
    bits_per_byte: tuple[float, float]
    mean_kl: float
    other_favourite: float
    check: Check


def compare_report(first: LoadedModel, second: LoadedModel, text: str, *, parse_special: bool = False) -> CompareReport:
    """Both models over ``text``, in windows of the smaller context, and over the candidates that both have.

    Errors: another tokenizer, fewer than two tokens.
    """
    pair = (first, second)
    ids = _shared_ids(pair, text, parse_special)
    context = min(loaded.model.config.max_position_embeddings for loaded in pair)
    # Some models pad their vocabulary with rows that no token has, and not always by as many.
    candidates = min(first.tokenizer.size, *(loaded.model.config.vocab_size for loaded in pair))
    chunks, size = running(first.tokenizer, ids)
    tokens, sums = _tokens(pair, ids, chunks, context, candidates)
    bits = [-sum(token.logprobs[n] for token in tokens) / math.log(2) for n in (0, 1)]
    mean_kl = sum(token.kl for token in tokens) / len(tokens)
    return CompareReport(
        models=(first.name, second.name),
        tokens=tokens,
        bits_per_byte=(bits[0] / max(size, 1), bits[1] / max(size, 1)),
        mean_kl=mean_kl,
        other_favourite=sum(token.favourites[0] != token.favourites[1] for token in tokens) / len(tokens),
        check=check(
            *(
                one_by_one(loaded, ids, [token.logprobs[n] for token in tokens], context, candidates)
                for n, loaded in enumerate(pair)
            ),
            as_cross_entropy(
                "mean surprisal and KL",
                [bits[0] / len(tokens), bits[1] / len(tokens), mean_kl],
                [total / len(tokens) for total in sums],
            ),
        ),
    )


def _shared_ids(pair: Pair, text: str, parse_special: bool) -> list[int]:
    """The tokens that the text is to both models."""
    first, second = pair
    hint = "compare a model with what was trained from it"
    if first.tokenizer.fast.get_vocab() != second.tokenizer.fast.get_vocab():
        raise usage_error(f"{first.name} and {second.name} have different tokenizers", hint)
    ids = first.prompt_ids(text, parse_special=parse_special)
    if ids != second.prompt_ids(text, parse_special=parse_special):
        raise usage_error(f"{first.name} and {second.name} read this text as different tokens", hint)
    check_enough(ids)
    return ids


def _tokens(
    pair: Pair, ids: Sequence[int], chunks: Sequence[str], context: int, candidates: int
) -> tuple[tuple[Compared, ...], list[float]]:
    """A row a token; and once more, in nats, the sums of both models' surprisals and of KL.

    The models go through the text together, so that only a few logits are held.
    """
    tokenizer = pair[0].tokenizer
    rows, sums = [], [0.0, 0.0, 0.0]
    steps = zip(*(_each(loaded, ids, context, candidates) for loaded in pair), strict=True)
    for place, ((a, nats_a), (b, nats_b)) in enumerate(steps, start=1):
        logprobs = tuple(float(logits.log_softmax(dim=-1)[ids[place]]) for logits in (a, b))
        rows.append(
            Compared(
                position=place,
                piece=vocab_entry(tokenizer, ids[place]),
                chunk=chunks[place - 1],
                logprobs=(logprobs[0], logprobs[1]),
                delta=logprobs[1] - logprobs[0],
                kl=float(kl_divergence(a, b)),
                favourites=(vocab_entry(tokenizer, int(a.argmax())), vocab_entry(tokenizer, int(b.argmax()))),
            )
        )
        sums = [total + more for total, more in zip(sums, (nats_a, nats_b, _excess(a, b)), strict=True)]
    return tuple(rows), sums


def _excess(logits: Tensor, other: Tensor) -> float:
    """What expecting ``other`` costs where ``logits`` are right, less what being right costs: KL in nats."""
    both = torch.stack([other, logits]).double()
    costs = nats(both, both[1:].softmax(dim=-1).expand(2, -1))
    return float(costs[0] - costs[1])


def _each(loaded: LoadedModel, ids: Sequence[int], context: int, candidates: int) -> Iterator[tuple[Tensor, float]]:
    """Before each token but the first the candidates' logits, on the CPU, [V]; and the token's cross entropy, nats."""
    for logits, goals in predictions(loaded.model, ids, context):
        known = logits[:, :candidates]
        yield from zip(known.cpu(), nats(known, goals).tolist(), strict=True)
