"""The view of a whole text: where was the model surprised?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.errors import usage_error
from llmcli.explain.check import Check, Claim, check, relative
from llmcli.explain.limits import limit
from llmcli.explain.piece import Piece, piece
from llmcli.generate.loaded import LoadedModel
from llmcli.generate.score import predictions, windows
from llmcli.generate.steps import next_logits
from llmcli.text.stream import TextStream

REREAD = 32  # tokens at the end that the check reads one by one


@dataclass(frozen=True)
class Scored:
    """One token of the text. ``chunk`` is the text that it completes: often its own, sometimes none.

    ``surprisal`` (-log2 p) and ``entropy`` (of all candidates) in bits; ``rank`` 0 is the model's ``favourite``.
    """

    position: int
    piece: Piece
    chunk: str
    logprob: float  # nats
    surprisal: float
    rank: int
    entropy: float
    favourite: Piece
    p_favourite: float


@dataclass(frozen=True)
class ScoreReport:
    """Every token but the ``first``, which nothing comes before. ``bytes`` are those of the tokens scored."""

    model: str
    first: Piece
    tokens: tuple[Scored, ...]
    bits: float
    bits_per_token: float
    bits_per_byte: float
    perplexity: float
    bytes: int
    check: Check


def score_report(loaded: LoadedModel, ids: Sequence[int]) -> ScoreReport:
    """Score a text of any length. Errors: fewer than two tokens."""
    if len(ids) < 2:
        raise usage_error("the text is too short: its first token is predicted from nothing", "give a longer one")
    stream = TextStream(loaded.tokenizer, ids[:1])
    rows = [row for logits, goals in predictions(loaded.model, ids) for row in _rows(logits, goals)]
    chunks = [stream.feed(id) for id in ids[1:]]
    chunks[-1] += stream.finish()
    tokens = tuple(
        Scored(
            position=place,
            piece=piece(loaded.tokenizer, ids[place]),
            chunk=chunk,
            logprob=logprob,
            surprisal=-logprob / math.log(2) + 0.0,  # no -0.0
            rank=rank,
            entropy=entropy,
            favourite=piece(loaded.tokenizer, best),
            p_favourite=p,
        )
        for place, (chunk, (logprob, rank, entropy, best, p)) in enumerate(zip(chunks, rows, strict=True), start=1)
    )
    bits = sum(token.surprisal for token in tokens)
    size = sum(len(chunk.encode()) for chunk in chunks)
    return ScoreReport(
        model=loaded.name,
        first=piece(loaded.tokenizer, ids[0]),
        tokens=tokens,
        bits=bits,
        bits_per_token=bits / len(tokens),
        bits_per_byte=bits / max(size, 1),
        perplexity=math.exp(min(bits / len(tokens) * math.log(2), 700.0)),
        bytes=size,
        check=check(one_by_one(loaded, ids, [token.logprob for token in tokens])),
    )


def _rows(logits: Tensor, goals: Tensor) -> Iterator[tuple[float, int, float, int, float]]:
    """Of logits [n, V] and the tokens that came [n]: logprob, rank, entropy in bits, the favourite and its p."""
    logps = logits.log_softmax(dim=-1)
    own = logps.gather(-1, goals[:, None])
    better = (logps > own).sum(dim=-1)
    ties = (logps == own) & (torch.arange(logps.shape[-1], device=logps.device) < goals[:, None])  # by id
    entropy = torch.special.entr(logps.exp()).sum(dim=-1) / math.log(2)
    best, favourite = logps.max(dim=-1)
    columns = (own[:, 0], better + ties.sum(dim=-1), entropy, favourite, best.exp())
    return zip(*(column.tolist() for column in columns), strict=True)


def one_by_one(loaded: LoadedModel, ids: Sequence[int], logprobs: Sequence[float], context: int | None = None) -> Claim:
    """The last tokens scored anew, read singly through the KV cache; ``context`` as of ``predictions``."""
    model = loaded.model
    start, counted = windows(len(ids), context or model.config.max_position_embeddings)[-1]
    first = max(len(ids) - REREAD, counted + 1)  # the first token that is scored anew
    cache, errors = model.new_cache(), []
    cache.planned = len(ids) - 1 - start
    unread = ids[start:first]
    for place in range(first, len(ids)):
        anew = float(next_logits(model, unread, cache).log_softmax(dim=-1)[ids[place]])
        errors.append(relative(abs(anew - logprobs[place - 1]), abs(anew)))
        unread = ids[place : place + 1]
    return Claim(f"one by one, {loaded.name} finds the last tokens as probable", max(errors), limit(model))
