"""The view of a whole text: where was the model surprised?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llmcli.errors import usage_error
from llmcli.explain.forward_pass import tolerance
from llmcli.explain.report import Claim, ScoredToken, ScoreReport, check, relative_error, vocab_entry
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.score import nats, predictions, windows
from llmcli.generation.steps import next_logits
from llmcli.text.stream import TextStream
from llmcli.text.tokenizer import Tokenizer

REREAD = 32  # tokens at the end that the check reads one by one
ROUNDING = 1e-5  # of a mean over fp32 numbers, whatever the model's dtype


def score_report(loaded: LoadedModel, ids: Sequence[int]) -> ScoreReport:
    """Score a text of any length. Errors: fewer than two tokens."""
    check_enough(ids)
    rows: list[tuple[float, int, float, int, float]] = []
    sums = [0.0, 0.0]  # surprisal and entropy once more, in nats
    for logits, goals in predictions(loaded.model, ids):
        rows += _rows(logits, goals)
        for n, expected in enumerate((goals, logits.softmax(dim=-1))):
            sums[n] += float(nats(logits, expected).sum(dtype=torch.float64))
    chunks, size = running(loaded.tokenizer, ids)
    tokens = tuple(
        ScoredToken(
            position=place,
            piece=vocab_entry(loaded.tokenizer, ids[place]),
            chunk=chunk,
            logprob=logprob,
            surprisal=-logprob / math.log(2) + 0.0,  # no -0.0
            rank=rank,
            entropy=entropy,
            favourite=vocab_entry(loaded.tokenizer, best),
            p_favourite=p,
        )
        for place, (chunk, (logprob, rank, entropy, best, p)) in enumerate(zip(chunks, rows, strict=True), start=1)
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
        perplexity=float(torch.tensor(mean, dtype=torch.float64).exp2()),  # infinite, where Python would raise
        bytes=size,
        check=check(
            one_by_one(loaded, ids, [token.logprob for token in tokens]),
            as_cross_entropy(
                "mean surprisal and entropy",
                [mean, sum(entropy for _, _, entropy, _, _ in rows) / len(tokens)],
                [total / len(tokens) for total in sums],
            ),
        ),
    )


def check_enough(ids: Sequence[int]) -> None:
    """Raise unless a text holds a token that has one before it."""
    if len(ids) < 2:
        raise usage_error("the text is too short: its first token is predicted from nothing", "give a longer one")


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


def one_by_one(
    loaded: LoadedModel,
    ids: Sequence[int],
    logprobs: Sequence[float],
    context: int | None = None,
    candidates: int | None = None,
) -> Claim:
    """The last tokens scored anew, read singly through the KV cache; the difference as root mean squares.

    Of one token alone it is a matter of chance in bfloat16; of all together it hardly varies.
    ``context`` as of ``predictions``; of the vocabulary only the first ``candidates`` count, if not all.
    """
    model = loaded.model
    start, counted = windows(len(ids), context or model.config.max_position_embeddings)[-1]
    first = max(len(ids) - REREAD, counted + 1)  # the first token that is scored anew
    cache, found = model.new_cache(), []
    cache.planned = len(ids) - 1 - start
    unread = ids[start:first]
    for place in range(first, len(ids)):
        anew = next_logits(model, unread, cache)[:candidates].log_softmax(dim=-1)
        found.append(float(anew[ids[place]]))
        unread = ids[place : place + 1]
    expected = torch.tensor(found, dtype=torch.float64)
    difference = torch.tensor(logprobs[first - 1 :], dtype=torch.float64) - expected
    error, size = (float(values.square().mean().sqrt()) for values in (difference, expected))
    return Claim(
        f"one by one, {loaded.name} finds the last tokens as probable", relative_error(error, size), tolerance(model)
    )


def as_cross_entropy(what: str, bits: Sequence[float], nats: Sequence[float]) -> Claim:
    """Means by the rows shown, beside the same by torch's own cross entropy."""
    errors = [relative_error(abs(a * math.log(2) - b), abs(b)) for a, b in zip(bits, nats, strict=True)]
    return Claim(f"{what} are those of cross entropy", max(errors), ROUNDING)


def running(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[list[str], int]:
    """The text that each token but the first completes, and how many bytes of the text are theirs.

    A character that the first token only begins is shown whole where it is completed; the bytes of the
    first are not counted. Special tokens have neither text nor bytes.
    """
    stream = TextStream(tokenizer)
    first = stream.feed(ids[0])
    chunks = [stream.feed(id) for id in ids[1:]]
    chunks[-1] += stream.finish()
    begun = b"" if first or ids[0] in tokenizer.special_ids else tokenizer.token_bytes(ids[0])
    return chunks, len("".join(chunks).encode()) - len(begun)
