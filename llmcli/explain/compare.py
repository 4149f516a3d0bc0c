"""The view of two models on one text: what did fine-tuning change?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from llmcli.errors import usage_error
from llmcli.explain.check import Check, check
from llmcli.explain.divergence import divergence
from llmcli.explain.piece import Piece, piece
from llmcli.explain.score import one_by_one
from llmcli.generate.loaded import LoadedModel
from llmcli.generate.score import predictions
from llmcli.text.stream import TextStream


@dataclass(frozen=True)
class Compared:
    """One token under both models: ``logprobs`` in nats, ``delta`` the second less the first, ``kl`` in bits.

    ``kl`` is D(first‖second) over the whole vocabulary; ``favourites`` are what each model would have written.
    """

    position: int
    piece: Piece
    chunk: str
    logprobs: tuple[float, float]
    delta: float
    kl: float
    favourites: tuple[Piece, Piece]


@dataclass(frozen=True)
class CompareReport:
    """Every token but the first. ``other_favourite`` is the share of places where the favourites differ."""

    models: tuple[str, str]
    tokens: tuple[Compared, ...]
    bits_per_byte: tuple[float, float]
    mean_kl: float
    other_favourite: float
    check: Check


def compare_report(first: LoadedModel, second: LoadedModel, text: str, *, parse_special: bool = False) -> CompareReport:
    """Both models over ``text``, in windows of the smaller context.

    Errors: another tokenizer, fewer than two tokens.
    """
    if first.tokenizer.fast.get_vocab() != second.tokenizer.fast.get_vocab():
        raise usage_error(
            f"{first.name} and {second.name} have different tokenizers", "compare a model with what was trained from it"
        )
    ids = first.prompt_ids(text, parse_special=parse_special)
    if ids != second.prompt_ids(text, parse_special=parse_special) or len(ids) < 2:
        raise usage_error("the text must be the same two tokens or more to both models", "give a longer one")
    context = min(loaded.model.config.max_position_embeddings for loaded in (first, second))
    tokens = _tokens(first, second, ids, context)
    size = sum(len(token.chunk.encode()) for token in tokens)
    sums = [sum(token.logprobs[n] for token in tokens) for n in (0, 1)]
    return CompareReport(
        models=(first.name, second.name),
        tokens=tokens,
        bits_per_byte=(-sums[0] / math.log(2) / max(size, 1), -sums[1] / math.log(2) / max(size, 1)),
        mean_kl=sum(token.kl for token in tokens) / len(tokens),
        other_favourite=sum(token.favourites[0] != token.favourites[1] for token in tokens) / len(tokens),
        check=check(
            *(
                one_by_one(loaded, ids, [token.logprobs[n] for token in tokens], context)
                for n, loaded in enumerate((first, second))
            )
        ),
    )


def _tokens(first: LoadedModel, second: LoadedModel, ids: Sequence[int], context: int) -> tuple[Compared, ...]:
    """A row a token; the models go through the text together, so that only a few logits are held."""
    tokenizer = first.tokenizer
    stream, rows = TextStream(tokenizer, ids[:1]), []
    for place, (a, b) in enumerate(zip(_each(first, ids, context), _each(second, ids, context), strict=True), start=1):
        logprobs = tuple(float(logits.log_softmax(dim=-1)[ids[place]]) for logits in (a, b))
        chunk = stream.feed(ids[place])
        rows.append(
            Compared(
                position=place,
                piece=piece(tokenizer, ids[place]),
                chunk=chunk if place < len(ids) - 1 else chunk + stream.finish(),
                logprobs=(logprobs[0], logprobs[1]),
                delta=logprobs[1] - logprobs[0],
                kl=float(divergence(a, b)),
                favourites=(piece(tokenizer, int(a.argmax())), piece(tokenizer, int(b.argmax()))),
            )
        )
    return tuple(rows)


def _each(loaded: LoadedModel, ids: Sequence[int], context: int) -> Iterator[Tensor]:
    """The logits before each token but the first, of the rows that a token has, on the CPU: [V]."""
    size = loaded.tokenizer.size
    return (row for logits, _ in predictions(loaded.model, ids, context) for row in logits[:, :size].cpu())
