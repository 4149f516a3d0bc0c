"""Proofs that compare a model with itself: however a text is read, observed or generated, the numbers are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from llmcli.engine.batch import batch_cache
from llmcli.explain.attention.layer_heads import attention_output_claim
from llmcli.explain.forward_pass import observe
from llmcli.explain.verification.proof import Finding, Skipped, compare_logits, difference, fraction_different, worst
from llmcli.explain.verification.subject import Subject, batch, one_pass
from llmcli.generation.filters import Temperature
from llmcli.generation.reading import next_logits
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import steps
from llmcli.model.cache import KVCache
from llmcli.model.trace import Trace
from llmcli.model.transformer import Block, Transformer
from llmcli.text.stream import TextStream

MAX_CONTINUATION = 32  # tokens
MAX_OBSERVED_WEIGHTS = 2**24  # attention weights in memory at a time, 64 MiB
SUM_TOLERANCE = 1e-5  # of a sum of attention weights
# Appended to the text: characters of several bytes, which tokens may split, and whitespace of all kinds.
UNUSUAL_TEXT = " naïve café, 東京, \U0001f642\U0001f98a\n\n\tx  =  3.5;"


# Ways to read the tokens.


def cached(subject: Subject) -> Finding:
    """Feed each token alone, with the ones before it in the cache, as generation does."""
    model, cache = subject.model, subject.new_cache()
    logits = torch.stack([next_logits(model, [id], cache).cpu() for id in subject.ids])
    return compare_logits(logits, subject.logits, subject.tolerance, subject.loaded.tokenizer)


def chunked(subject: Subject) -> Finding:
    """Feed two halves; the first token, then the rest; all but the last, then the last; chunks of seven."""
    length = len(subject.ids)
    ways = [[length // 2], [1], [length - 1], list(range(7, length, 7))]
    return worst(
        compare_logits(
            _read(subject.model, subject.new_cache(), batch(subject.model, subject.ids), cuts)[0],
            subject.logits,
            subject.tolerance,
            subject.loaded.tokenizer,
        )
        for cuts in ways
    )


def truncated(subject: Subject) -> Finding:
    """Read half of the text, then other tokens, truncate the cache to that half, and read the rest of the text."""
    model, cache, half = subject.model, subject.new_cache(), len(subject.ids) // 2
    _read(model, cache, batch(model, [*subject.ids[:half], *other_ids(subject)[half:]]), [half])
    cache.truncate(half)
    unread = subject.ids[half:] if cache.length else subject.ids  # a windowed layer may have lost the beginning
    logits = _read(model, cache, batch(model, unread), [])[0]
    return compare_logits(
        logits[half - len(subject.ids) :], subject.logits[half:], subject.tolerance, subject.loaded.tokenizer, half
    )


def batched(subject: Subject) -> Finding:
    """Read two texts in one batch, in two halves; decode the second halves as a batch does. Compare with each alone."""
    model, half = subject.model, len(subject.ids) // 2
    texts = (subject.ids, other_ids(subject))
    cache = model.new_cache(2)
    cache.planned = len(subject.ids)
    read = _read(model, cache, batch(model, *texts), [half])
    alone = (subject.logits, one_pass(model, texts[1]))
    tokenizer = subject.loaded.tokenizer
    return worst(
        compare_logits(ours, one[first:], subject.tolerance, tokenizer, first)
        for rows, first in ((read, 0), (_decode_together(subject, texts, half), half))
        for ours, one in zip(rows, alone, strict=True)
    )


def _decode_together(subject: Subject, texts: Sequence[Sequence[int]], first: int) -> Tensor:
    """The logits after each token from ``first`` on of texts that are decoded in one batch: fp32 [texts, T, V]."""
    together = batch_cache(subject.model)
    for ids in texts:
        cache = subject.new_cache()
        next_logits(subject.model, ids[:first], cache)
        together.add(cache)
    tokens = zip(*(ids[first:] for ids in texts), strict=True)
    return torch.stack([together.step(each).cpu() for each in tokens], dim=1)


def causal(subject: Subject) -> Finding:
    """Replace the second half of the text: nothing may change in the first half."""
    half = len(subject.ids) // 2
    logits = one_pass(subject.model, [*subject.ids[:half], *other_ids(subject)[half:]])
    return compare_logits(logits[:half], subject.logits[:half], subject.tolerance, subject.loaded.tokenizer)


def other_ids(subject: Subject) -> list[int]:
    """Return a text of the same length that differs in every token."""
    return [(id + 1) % subject.model.config.vocab_size for id in subject.ids]


def _read(model: Transformer, cache: KVCache, ids: Tensor, cuts: Sequence[int]) -> Tensor:
    """The logits after every token of ids [B, T], fed in chunks that start at ``cuts``: fp32 [B, T, V] on the CPU."""
    chunks = [chunk for chunk in ids.tensor_split(list(cuts), dim=1) if chunk.shape[1]]
    with torch.inference_mode():
        return torch.cat([model(chunk, cache).float().cpu() for chunk in chunks], dim=1)


# What an observer sees.


@dataclass(frozen=True)
class ObservedErrors:
    """The largest errors found while the model read the text in chunks under observation."""

    logits: float  # difference from the logits without observation
    sums: float  # difference of the sums of attention weights from 1; where heads have sinks, what exceeds 1
    ahead: float  # attention weight on a later position
    parts: float  # difference of a residual from the one before it plus what the layer added, times its scalar


def observed_errors(subject: Subject) -> ObservedErrors:
    """Read the text observed and unobserved, and return the largest errors."""
    model, ids, config = subject.model, batch(subject.model, subject.ids), subject.model.config
    length = ids.shape[1]
    rows = MAX_OBSERVED_WEIGHTS // (config.num_hidden_layers * config.num_attention_heads * length)
    rows = min(max(rows, 1), length // 2)  # so that there are chunks with and without a past
    observed_cache, plain_cache, found = subject.new_cache(), subject.new_cache(), []
    with torch.inference_mode():
        for chunk in torch.split(ids, rows, dim=1):
            past, trace = plain_cache.length, Trace()
            observed, plain = model(chunk, observed_cache, trace).float(), model(chunk, plain_cache).float()
            weights = trace.attention.values()
            found.append(
                [
                    float((observed - plain).abs().max()),
                    max((_sum_error(model, each) for each in weights), default=0.0),
                    max((float(each.triu(past + 1).abs().max()) for each in weights), default=0.0),
                    _residual_error(model, trace),
                ]
            )
    return ObservedErrors(*torch.tensor(found).amax(dim=0).tolist())  # amax keeps a NaN


def _sum_error(model: Transformer, weights: Tensor) -> float:
    error = weights.sum(dim=-1) - 1
    return float((error.clamp_min(0) if model.config.attention_sinks else error.abs()).max())


def _residual_error(model: Transformer, trace: Trace) -> float:
    parts = (trace.attn_out, trace.mlp_out, *([trace.input_out] if trace.input_out else []))
    errors = []
    for layer, added in enumerate(zip(*parts, strict=True)):
        summed, scalar = trace.residual[layer] + sum(added), cast(Block, model.blocks[layer]).scalar
        errors.append(difference(summed if scalar is None else summed * scalar.float(), trace.residual[layer + 1]))
    return float(torch.tensor(errors).amax())


def require_attention(subject: Subject) -> None:
    """Raise ``Skipped`` if no layer has attention."""
    if not subject.model.config.attending:
        raise Skipped("no layer of this model has attention")


def attention_adds_up(subject: Subject) -> Finding:
    """After the last token, in every layer: the observed weights times the values are what attention added."""
    require_attention(subject)
    observed = observe(subject.model, subject.ids)
    claim = attention_output_claim(subject.model, observed, list(observed.trace.attention))
    return Finding(claim.error, subject.tolerance)


# Text and draws.


def decoded(subject: Subject) -> Finding:
    """Encode and decode the text. Skipped if the tokens' bytes are not the text's: the tokenizer normalizes it."""
    tokenizer, text = subject.loaded.tokenizer, subject.text + UNUSUAL_TEXT
    tokens = tokenizer.tokens(text)
    if b"".join(token.bytes for token in tokens if token.end > token.start).strip(b" ") != text.encode().strip(b" "):
        raise Skipped("this tokenizer changes a text before it splits it, so decoding cannot restore it")
    return Finding(fraction_different(tokenizer.decode([token.id for token in tokens]), text), 0.0)


def streamed(subject: Subject) -> Finding:
    """Decode token by token, as generation prints, and all tokens at once."""
    tokenizer = subject.loaded.tokenizer
    ids, stream = tokenizer.encode(subject.text + UNUSUAL_TEXT), TextStream(tokenizer)
    text = "".join([*(stream.feed(id) for id in ids), stream.finish()])
    return Finding(fraction_different(text, tokenizer.decode(ids)), 0.0)


def repeated(subject: Subject) -> Finding:
    """Generate a text at temperature 1 twice with the same seed."""
    first, second = (generate(subject, Temperature(1.0)) for _ in range(2))
    return Finding(fraction_different([id for id, _ in first], [id for id, _ in second]), 0.0)


def generate(subject: Subject, temperature: Temperature, model: Transformer | None = None) -> list[tuple[int, Tensor]]:
    """Continue the text and return each token with the logits, fp32 [V], that it was chosen from."""
    sampler = Sampler([*subject.loaded.vocabulary_filter(), temperature], seed=0)
    count = continuation_length(subject)
    return [
        (step.token, step.logits.cpu())
        for step in steps(model or subject.model, prompt(subject), sampler=sampler, max_new_tokens=count)
    ]


def continuation_length(subject: Subject) -> int:
    """Return how many tokens ``generate`` writes: at most half of the context."""
    return min(MAX_CONTINUATION, subject.model.config.max_position_embeddings // 2)


def prompt(subject: Subject) -> Sequence[int]:
    """Return as much of the text as leaves room for the continuation."""
    return subject.ids[: subject.model.config.max_position_embeddings - continuation_length(subject)]
