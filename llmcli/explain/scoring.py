"""Scoring a text: how surprised the model is by each token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llmcli.errors import usage_error
from llmcli.explain.forward_pass import tolerance
from llmcli.explain.report import Claim, ScoredToken, ScoreReport, Windows, check, relative_error, vocab_entry
from llmcli.explain.selection import Text, token_ids
from llmcli.generation.distribution import Softmax, log_probabilities, probabilities
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.reading import next_logits
from llmcli.generation.score import nats, predictions, windows
from llmcli.storage.checkpoint import Progress
from llmcli.text.stream import TextStream
from llmcli.text.tokenizer import Tokenizer

RESCORED = 32  # tokens at the end of the text that the check scores again
MEAN_TOLERANCE = 1e-5  # of a mean of fp32 numbers, whatever the model's dtype


def score(
    loaded: LoadedModel, text: Text, *, parse_special: bool = False, progress: Progress | None = None
) -> ScoreReport:
    """Score every token of ``text`` but the first, given the tokens before it.

    A text longer than the context is read in windows that overlap by half. ``progress`` receives the number of tokens
    scored and their total. Raises LlmcliError if the text has fewer
    than two tokens.
    """
    ids = token_ids(loaded, text, parse_special=parse_special, any_length=True)
    check_scorable(ids)
    rows: list[tuple[float, int, float, int, float]] = []
    sums = [0.0, 0.0]  # surprisal and entropy in nats, computed in another way, for the check
    for logits, targets in predictions(loaded.model, ids):
        rows += _rows(logits, targets)
        for n, expected in enumerate((targets, probabilities(logits))):
            sums[n] += float(nats(logits, expected).sum(dtype=torch.float64))
        if progress is not None:
            progress(len(rows), len(ids) - 1)
    chunks, size = text_chunks(loaded.tokenizer, ids)
    tokens = tuple(
        ScoredToken(
            position=position,
            piece=vocab_entry(loaded.tokenizer, ids[position]),
            chunk=chunk,
            logprob=logprob,
            surprisal=-logprob / math.log(2) + 0.0,  # no -0.0
            rank=rank,
            entropy=entropy,
            favourite=vocab_entry(loaded.tokenizer, top),
            p_favourite=p_top,
        )
        for position, (chunk, (logprob, rank, entropy, top, p_top)) in enumerate(zip(chunks, rows, strict=True), 1)
    )
    bits = sum(token.surprisal for token in tokens)
    mean = bits / len(tokens)
    return ScoreReport(
        model=loaded.name,
        first=vocab_entry(loaded.tokenizer, ids[0]),
        tokens=tokens,
        bits=bits,
        bits_per_token=mean,
        bits_per_byte=bits / max(size, 1),
        perplexity=float(torch.tensor(mean, dtype=torch.float64).exp2()),  # inf where Python raises OverflowError
        bytes=size,
        windows=windows_of(len(ids), loaded.model.config.max_position_embeddings),
        check=check(
            rescoring_claim(loaded, ids, [token.logprob for token in tokens]),
            cross_entropy_claim(
                "mean surprisal and entropy",
                [mean, sum(entropy for _, _, entropy, _, _ in rows) / len(tokens)],
                [total / len(tokens) for total in sums],
            ),
        ),
    )


def windows_of(length: int, context: int) -> Windows | None:
    """Return the windows of ``context`` tokens in which a text of ``length`` tokens is read; None if it is only one."""
    found = windows(length, context)
    return Windows(len(found), context, found[1][1] - found[1][0]) if len(found) > 1 else None


def check_scorable(ids: Sequence[int]) -> None:
    """Raise LlmcliError unless at least one token follows another."""
    if len(ids) < 2:
        raise usage_error("the text is too short: its first token has no context", "give a longer one")


def _rows(logits: Tensor, targets: Tensor) -> Iterator[tuple[float, int, float, int, float]]:
    """Logprob, rank and entropy in bits of each of ``targets`` [n], and the top token and its p; logits [n, V]."""
    logps = log_probabilities(logits)
    own = logps.gather(-1, targets[:, None])
    better = (logps > own).sum(dim=-1)
    ties = (logps == own) & (torch.arange(logps.shape[-1], device=logps.device) < targets[:, None])  # by id
    entropy = torch.special.entr(logps.exp()).sum(dim=-1) / math.log(2)
    best, top = logps.max(dim=-1)
    columns = (own[:, 0], better + ties.sum(dim=-1), entropy, top, best.exp())
    return zip(*(column.tolist() for column in columns), strict=True)


def text_chunks(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[list[str], int]:
    """Return the text that each token but the first completes, and the number of bytes of these tokens.

    A character that starts in the first token is shown whole where it is completed; the first token's bytes are not
    counted. Special tokens have neither text nor bytes.
    """
    stream = TextStream(tokenizer)
    first = stream.feed(ids[0])
    chunks = [stream.feed(id) for id in ids[1:]]
    chunks[-1] += stream.finish()
    incomplete = b"" if first or ids[0] in tokenizer.special_ids else tokenizer.token_bytes(ids[0])
    return chunks, len("".join(chunks).encode()) - len(incomplete)


def rescoring_claim(
    loaded: LoadedModel,
    ids: Sequence[int],
    logprobs: Sequence[float],
    context: int | None = None,
    vocab_size: int | None = None,
) -> Claim:
    """Claim that the last tokens get the same logprobs if they are fed one by one through the KV cache.

    Compares root mean squares: in bfloat16 the error of a single token is a matter of chance. ``context`` is the size
    of the windows, by default the model's; only the first ``vocab_size`` tokens are candidates, by default all.
    """
    model = loaded.model
    start, scored = windows(len(ids), context or model.config.max_position_embeddings)[-1]
    first = max(len(ids) - RESCORED, scored + 1)
    cache, found = model.new_cache(), []
    cache.planned = len(ids) - 1 - start
    unread = ids[start:first]
    for position in range(first, len(ids)):
        found.append(Softmax(next_logits(model, unread, cache)[:vocab_size]).logprob(ids[position]))
        unread = ids[position : position + 1]
    expected = torch.tensor(found, dtype=torch.float64)
    difference = torch.tensor(logprobs[first - 1 :], dtype=torch.float64) - expected
    error, size = (float(values.square().mean().sqrt()) for values in (difference, expected))
    what = f"{loaded.name} gives the last tokens the same probability one by one"
    return Claim(what, relative_error(error, size), tolerance(model))


def cross_entropy_claim(what: str, bits: Sequence[float], nats: Sequence[float]) -> Claim:
    """Claim that means of the rows shown, in ``bits``, equal those of the cross entropy, in ``nats``."""
    errors = [relative_error(abs(a * math.log(2) - b), abs(b)) for a, b in zip(bits, nats, strict=True)]
    return Claim(f"{what} equal the cross entropy from PyTorch's logsumexp", max(errors), MEAN_TOLERANCE)
