"""The proofs that a model makes of itself: whatever way a text comes in, the numbers are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.explain.forward_pass import observe
from llmcli.explain.heads import attention_output_claim
from llmcli.explain.verification.proof import Finding, Skipped, compared, difference, share_of_differing, worst
from llmcli.explain.verification.subject import Subject, batch, one_pass
from llmcli.generation.filters import Temperature
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import next_logits, steps
from llmcli.model.cache import KVCache
from llmcli.model.trace import Trace
from llmcli.model.transformer import Transformer
from llmcli.text.stream import TextStream

CONTINUED = 32  # tokens that are written where a proof writes some
MOST_WEIGHTS = 2**24  # attention weights observed at once, 64 MiB
SUMS = 1e-5  # what rounding makes of a sum that is 1
# Read and written beside the text: characters of several bytes, which tokens may split, and spaces of all kinds.
ODD = " naïve café, 東京, \U0001f642\U0001f98a\n\n\tx  =  3.5;"


# Whatever way the tokens are read.


def cached(subject: Subject) -> Finding:
    """As ``generate`` does it: each token fed alone, those before it in the cache."""
    model, cache = subject.model, _cache(subject)
    rows = torch.stack([next_logits(model, [id], cache).cpu() for id in subject.ids])
    return compared(rows, subject.whole, subject.allowed, subject.loaded.tokenizer)


def chunked(subject: Subject) -> Finding:
    """Two halves, one token and the rest, the rest and one token, sevens."""
    length = len(subject.ids)
    ways = [[length // 2], [1], [length - 1], list(range(7, length, 7))]
    return worst(
        compared(
            _read(subject.model, _cache(subject), batch(subject.model, subject.ids), cuts)[0],
            subject.whole,
            subject.allowed,
            subject.loaded.tokenizer,
        )
        for cuts in ways
    )


def taken_back(subject: Subject) -> Finding:
    """Read half of the text, go on with other tokens, forget those, and read the text's own."""
    model, cache, half = subject.model, _cache(subject), len(subject.ids) // 2
    _read(model, cache, batch(model, [*subject.ids[:half], *other(subject)[half:]]), [half])
    cache.truncate(half)
    again = subject.ids[half:] if cache.length else subject.ids  # a windowed layer may have forgotten all
    rows = _read(model, cache, batch(model, again), [])[0]
    return compared(
        rows[half - len(subject.ids) :], subject.whole[half:], subject.allowed, subject.loaded.tokenizer, half
    )


def batched(subject: Subject) -> Finding:
    """Two texts side by side, read in two halves."""
    model, length = subject.model, len(subject.ids)
    cache = model.new_cache(2)
    cache.planned = length
    rows = _read(model, cache, batch(model, subject.ids, other(subject)), [length // 2])
    alone = (subject.whole, one_pass(model, other(subject)))
    return worst(
        compared(ours, one, subject.allowed, subject.loaded.tokenizer) for ours, one in zip(rows, alone, strict=True)
    )


def causal(subject: Subject) -> Finding:
    """The second half of the text exchanged: nothing may change in the first."""
    half = len(subject.ids) // 2
    rows = one_pass(subject.model, [*subject.ids[:half], *other(subject)[half:]])
    return compared(rows[:half], subject.whole[:half], subject.allowed, subject.loaded.tokenizer)


def other(subject: Subject) -> list[int]:
    """As long a text, none of whose tokens is the same."""
    return [(id + 1) % subject.model.config.vocab_size for id in subject.ids]


def _cache(subject: Subject) -> KVCache:
    """An empty one for the text, whose angles may depend on how long it will be."""
    cache = subject.model.new_cache()
    cache.planned = len(subject.ids)
    return cache


def _read(model: Transformer, cache: KVCache, ids: Tensor, cuts: Sequence[int]) -> Tensor:
    """Logits behind all of ids [B, T], cut before the positions ``cuts``: fp32 [B, T, V] on the CPU."""
    parts = [part for part in ids.tensor_split(list(cuts), dim=1) if part.shape[1]]
    with torch.inference_mode():
        return torch.cat([model(part, cache).float().cpu() for part in parts], dim=1)


# What an observer sees.


@dataclass(frozen=True)
class Watched:
    """Of the text read in pieces, observed: how far off what must hold is, at the worst."""

    logits: float  # from those that nobody observed
    sums: float  # of attention weights, from 1
    ahead: float  # the largest weight on a later position
    parts: float  # of a residual, from what was there before and what was added


def watch(subject: Subject) -> Watched:
    """Read the text observed, and once more unobserved."""
    model, ids, config = subject.model, batch(subject.model, subject.ids), subject.model.config
    length = ids.shape[1]
    rows = MOST_WEIGHTS // (config.num_hidden_layers * config.num_attention_heads * length)
    rows = min(max(rows, 1), length // 2)  # so that there are pieces with a past and one without
    observed, plain, found = _cache(subject), _cache(subject), []
    with torch.inference_mode():
        for part in torch.split(ids, rows, dim=1):
            past, trace = plain.length, Trace()
            seen, unseen = model(part, observed, trace).float(), model(part, plain).float()
            found.append(
                Watched(
                    logits=float((seen - unseen).abs().max()),
                    sums=max(float((weights.sum(dim=-1) - 1).abs().max()) for weights in trace.attention),
                    ahead=max(float(weights.triu(past + 1).abs().max()) for weights in trace.attention),
                    parts=_parts(trace),
                )
            )
    columns = torch.tensor([[piece.logits, piece.sums, piece.ahead, piece.parts] for piece in found])
    return Watched(*columns.amax(dim=0).tolist())  # amax: a NaN stays


def _parts(trace: Trace) -> float:
    before, after = trace.residual[:-1], trace.residual[1:]
    errors = [
        difference(x + attn_out + mlp_out, y)
        for x, attn_out, mlp_out, y in zip(before, trace.attn_out, trace.mlp_out, after, strict=True)
    ]
    return float(torch.tensor(errors).amax())


def weighed(subject: Subject) -> Finding:
    """Behind the last token, in every layer: values times the weights observed are what attention added."""
    reading = observe(subject.model, subject.ids)
    claim = attention_output_claim(subject.model, reading, range(subject.model.config.num_hidden_layers))
    return Finding(claim.error, subject.allowed)


# Text and draws.


def decoded(subject: Subject) -> Finding:
    """Skipped where the tokens' bytes are not the text's: such a tokenizer drops or replaces characters."""
    tokenizer, text = subject.loaded.tokenizer, subject.text + ODD
    tokens = tokenizer.tokens(text)
    if b"".join(token.bytes for token in tokens if token.end > token.start).strip(b" ") != text.encode().strip(b" "):
        raise Skipped("this tokenizer changes a text before it reads it, so there is no way back")
    return Finding(share_of_differing(tokenizer.decode([token.id for token in tokens]), text), 0.0)


def streamed(subject: Subject) -> Finding:
    """Token by token, as ``generate`` prints, beside all of them at once."""
    tokenizer = subject.loaded.tokenizer
    ids, stream = tokenizer.encode(subject.text + ODD), TextStream(tokenizer)
    text = "".join([*(stream.feed(id) for id in ids), stream.finish()])
    return Finding(share_of_differing(text, tokenizer.decode(ids)), 0.0)


def drawn_again(subject: Subject) -> Finding:
    """A text written at temperature 1, twice by one seed."""
    first, second = (write(subject, Temperature(1.0)) for _ in range(2))
    return Finding(share_of_differing([id for id, _ in first], [id for id, _ in second]), 0.0)


def write(subject: Subject, temperature: Temperature, model: Transformer | None = None) -> list[tuple[int, Tensor]]:
    """Tokens that continue the text, at most ``CONTINUED``, and the logits, fp32 [V], that each was chosen from."""
    count = continued(subject)
    sampler = Sampler([*subject.loaded.vocabulary_filter(), temperature], seed=0)
    return [
        (step.token, step.logits.cpu())
        for step in steps(model or subject.model, prompt(subject), sampler=sampler, max_new_tokens=count)
    ]


def continued(subject: Subject) -> int:
    """How many tokens are written behind the text: half a context is left for it."""
    return min(CONTINUED, subject.model.config.max_position_embeddings // 2)


def prompt(subject: Subject) -> Sequence[int]:
    """As much of the text as leaves room for what is written behind it."""
    return subject.ids[: subject.model.config.max_position_embeddings - continued(subject)]
