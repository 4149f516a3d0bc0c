"""Two models on a whole text in a few numbers: how far apart their distributions are, and both perplexities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.explain.models.comparison import Pair, cross_entropy_kl, shared_ids, shared_sizes
from llmcli.explain.report import Check, Claim, Report, VocabEntry, Windows, check, vocab_entry
from llmcli.explain.scoring import cross_entropy_claim, rescoring_claim, text_chunks, windows_of
from llmcli.explain.selection import Text
from llmcli.generation.loaded import LoadedModel, read_checkpoint
from llmcli.generation.score import nats, predictions
from llmcli.storage.checkpoint import Progress
from llmcli.storage.headers import read_headers

BLOCK = 2**20  # numbers that are compared at a time: 8 MiB in fp64
CONTEXT_TOKENS = 12  # before the token with the largest KL that are shown
NEGATIVE_TOLERANCE = 1e-9  # bits: a sum over a vocabulary in fp64 may round to less than 0


@dataclass(frozen=True)
class Divergences:
    """KL divergence in bits over all positions of a text."""

    mean: float
    median: float
    p99: float
    largest: float


@dataclass(frozen=True)
class LargestDivergence:
    """The position where D(first‖second) is largest: the ``piece`` there, and the text of a few tokens before it.

    ``kl`` is D(first‖second) and ``reverse_kl`` D(second‖first), in bits; ``favourites`` are each model's most
    probable token.
    """

    position: int
    piece: VocabEntry
    context: str
    kl: float
    reverse_kl: float
    favourites: tuple[VocabEntry, VocabEntry]


@dataclass(frozen=True)
class CompareSummary(Report):
    """All ``positions`` of a text but the first. ``kl`` is D(first‖second), ``reverse_kl`` D(second‖first).

    ``same_favourite`` is the fraction of positions where both models prefer the same token; ``perplexity_ratio`` is the
    second model's perplexity divided by the first's. ``disk_bytes`` are those of the stored weights.
    ``windows`` is None if the text fits into the smaller context.
    """

    models: tuple[str, str]
    positions: int
    kl: Divergences
    reverse_kl: Divergences
    largest: LargestDivergence
    same_favourite: float
    perplexities: tuple[float, float]
    perplexity_ratio: float
    bits_per_byte: tuple[float, float]
    disk_bytes: tuple[int, int]
    windows: Windows | None
    check: Check


@dataclass(frozen=True)
class _Numbers:
    """Per position, fp64 [T]: KL both ways in bits, both surprisals in nats, and whether the favourites are the same.

    ``sums`` are the surprisals in nats, added up in another way; ``peak`` is the row with the largest KL, and
    ``logits`` [2, V] are those of both models there.
    """

    kl: Tensor
    surprisals: Tensor
    same: Tensor
    sums: tuple[float, float]
    peak: int
    logits: Tensor


def compare_summary(
    first: LoadedModel,
    second: LoadedModel,
    text: Text,
    *,
    parse_special: bool = False,
    progress: Progress | None = None,
) -> CompareSummary:
    """Compare the distributions of both models over ``text``, in the windows and over the tokens of ``compare``.

    Memory for logits does not grow with the text. ``progress`` receives the number of tokens compared and their total.
    Raises LlmcliError if the models have different tokenizers, or the text has fewer than two tokens.
    """
    pair = (first, second)
    ids = shared_ids(pair, text, parse_special)
    context, vocab_size = shared_sizes(pair)
    found = _numbers(pair, ids, context, vocab_size, progress)
    means = found.surprisals.mean(dim=-1)
    perplexity = means.exp().tolist()
    bits = (found.surprisals.sum(dim=-1) / math.log(2)).tolist()
    size = max(text_chunks(first.tokenizer, ids)[1], 1)
    return CompareSummary(
        models=(first.name, second.name),
        positions=len(ids) - 1,
        kl=_divergences(found.kl[0]),
        reverse_kl=_divergences(found.kl[1]),
        largest=_largest(first, ids, found),
        same_favourite=float(found.same.mean()),
        perplexities=(perplexity[0], perplexity[1]),
        perplexity_ratio=float((means[1] - means[0]).exp()),
        bits_per_byte=(bits[0] / size, bits[1] / size),
        disk_bytes=(_disk_bytes(first), _disk_bytes(second)),
        windows=windows_of(len(ids), context),
        check=_check(pair, ids, found, context, vocab_size),
    )


def _numbers(pair: Pair, ids: Sequence[int], context: int, vocab_size: int, progress: Progress | None) -> _Numbers:
    """Run both models over the text in step and compare block by block."""
    targets = torch.tensor(ids[1:])
    kls, surprisals, same = [], [], []
    sums, done = [0.0, 0.0], 0
    peak, highest, at_peak = 0, -math.inf, torch.empty(0)
    for logits in _blocks(pair, ids, context, vocab_size):
        tokens = targets[done : done + logits.shape[1]]
        logps = logits.double().log_softmax(dim=-1)
        kl = _both_ways(logps)
        row = int(kl[0].argmax())
        if not float(kl[0, row]) <= highest:  # also a NaN, which fails the check
            peak, highest, at_peak = done + row, float(kl[0, row]), logits[:, row].clone()
        kls.append(kl)
        surprisals.append(-logps.gather(-1, tokens.expand(2, -1)[..., None])[..., 0])
        favourites = logits.argmax(dim=-1)
        same.append((favourites[0] == favourites[1]).double())
        sums = [
            total + float(nats(one, tokens).sum(dtype=torch.float64)) for total, one in zip(sums, logits, strict=True)
        ]
        done += len(tokens)
        if progress is not None:
            progress(done, len(targets))
    return _Numbers(
        torch.cat(kls, dim=-1), torch.cat(surprisals, dim=-1), torch.cat(same), (sums[0], sums[1]), peak, at_peak
    )


def _both_ways(logps: Tensor) -> Tensor:
    """Return D(first‖second) and D(second‖first) in bits, [2, T], of log probabilities [2, T, V]."""
    first, second = logps
    difference = first - second
    return torch.stack([(first.exp() * difference).sum(dim=-1), -(second.exp() * difference).sum(dim=-1)]) / math.log(2)


def _blocks(pair: Pair, ids: Sequence[int], context: int, vocab_size: int) -> Iterator[Tensor]:
    """Yield the logits of both models for the same few positions, fp32 [2, n, vocab_size] on the CPU.

    Models with rows for more tokens yield fewer positions at a time, so what one model is ahead waits.
    """
    streams = [predictions(loaded.model, ids, context) for loaded in pair]
    held = [torch.empty(0, vocab_size)] * 2
    rows, left = max(BLOCK // vocab_size, 1), len(ids) - 1
    while left:
        held = [
            logits if len(logits) else next(stream)[0][:, :vocab_size].cpu()
            for logits, stream in zip(held, streams, strict=True)
        ]
        count = min(rows, *map(len, held))
        yield torch.stack([logits[:count] for logits in held])
        held = [logits[count:] for logits in held]
        left -= count


def _divergences(kl: Tensor) -> Divergences:
    kl = kl.clamp_min(0) + 0.0  # no -0.0
    median, p99 = kl.quantile(torch.tensor([0.5, 0.99], dtype=torch.float64)).tolist()
    return Divergences(float(kl.mean()), median, p99, float(kl.max()))


def _largest(first: LoadedModel, ids: Sequence[int], found: _Numbers) -> LargestDivergence:
    tokenizer, position = first.tokenizer, found.peak + 1
    kl, reverse = (found.kl[:, found.peak].clamp_min(0) + 0.0).tolist()
    favourites = [vocab_entry(tokenizer, id) for id in found.logits.argmax(dim=-1).tolist()]
    return LargestDivergence(
        position=position,
        piece=vocab_entry(tokenizer, ids[position]),
        context=tokenizer.decode(list(ids[max(position - CONTEXT_TOKENS, 0) : position])),
        kl=kl,
        reverse_kl=reverse,
        favourites=(favourites[0], favourites[1]),
    )


def _disk_bytes(loaded: LoadedModel) -> int:
    """Return the bytes of the stored weights, and those of the adapter if the model has one."""
    headers = read_headers(read_checkpoint(loaded.folder), loaded.adapter)
    return sum(entry.end - entry.start for entry in headers.stored)


def _check(pair: Pair, ids: Sequence[int], found: _Numbers, context: int, vocab_size: int) -> Check:
    count = len(ids) - 1
    a, b = found.logits
    return check(
        *(
            rescoring_claim(loaded, ids, (-surprisals).tolist(), context, vocab_size)
            for loaded, surprisals in zip(pair, found.surprisals, strict=True)
        ),
        cross_entropy_claim(
            "mean surprisal and the largest KL",
            [
                *(found.surprisals.mean(dim=-1) / math.log(2)).tolist(),
                *found.kl[:, found.peak].tolist(),
            ],
            [*(total / count for total in found.sums), cross_entropy_kl(a, b), cross_entropy_kl(b, a)],
        ),
        Claim("no KL is negative", max(-float(found.kl.min()), 0.0), NEGATIVE_TOLERANCE),
    )
