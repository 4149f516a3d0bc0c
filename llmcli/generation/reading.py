"""Reading: feeding tokens to a model through its KV cache, a prompt in passes over many of them."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Generator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llmcli.engine.cuda_graph import decode, replays
from llmcli.engine.native import MAX_ROWS, NativeStep
from llmcli.engine.transformer import EngineTransformer
from llmcli.model.cache import KVCache
from llmcli.model.trace import Trace
from llmcli.model.transformer import Transformer
from llmcli.storage.quantize import QuantizedMatrix

NATIVE_PROMPT = 3 * MAX_ROWS  # up to this many tokens, the compiled engine reads a prompt as fast as torch
PREFILL_CHUNK = 512  # positions per forward pass: bounds the memory of long prompts at no cost in speed
CPU_CHUNK = 128  # PREFILL_CHUNK on a CPU with floating-point weights, where shorter passes are as fast

Span = tuple[int, int]  # positions, the end excluded


class Part(NamedTuple):
    """Positions of a text that are computed together. ``generated``: the model wrote them."""

    start: int
    end: int
    generated: bool


def common_prefix(before: Sequence[int], ids: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    return next((n for n, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids)))


def clear_if_stale(model: Transformer, length: int, cache: KVCache) -> None:
    """Empty the cache if a text of ``length`` needs other rotary angles than the cached keys have."""
    if model.stale(cache, length - cache.length):
        cache.truncate(0)


def reread(model: Transformer, ids: Sequence[int], cache: KVCache) -> None:
    """Feed all of a text's tokens but the last, whose logits then have the same bits alone and in a batch."""
    if len(ids) - cache.length > 1:
        cache.planned = max(cache.planned, len(ids))  # the last token must not change the angles
        next_logits(model, ids[cache.length : -1], cache)


def next_logits(model: Transformer, ids: Sequence[int], cache: KVCache, trace: Trace | None = None) -> Tensor:
    """Feed ``ids`` through the cache and return the logits after the last one, fp32 [V]."""
    return last_logits(model, ids, cache, 1, trace)[0]


def last_logits(
    model: Transformer, ids: Sequence[int], cache: KVCache, count: int, trace: Trace | None = None
) -> Tensor:
    """Feed ``ids`` through the cache and return the logits after each of the last ``count``, fp32 [count, V].

    An observed pass is always torch's, but the logits, keys and values are those of the pass that would have been made
    unobserved.
    """
    reading = read(model, ids, cache, count, trace)
    while True:
        try:
            next(reading)
        except StopIteration as end:
            logits: Tensor = end.value
            return logits


def read(
    model: Transformer,
    ids: Sequence[int],
    cache: KVCache,
    count: int = 1,
    trace: Trace | None = None,
    generated: Sequence[Span] = (),
) -> Generator[None, None, Tensor]:
    """Do what ``last_logits`` does, and yield after each forward pass but the last. ``trace`` observes only the last.

    Passes end where the parts of ``parts_of`` end. If the model has a compiled engine, it computes short passes and the
    ``generated`` spans, which are counted from the start of the text; with spans, ``count`` must be 1.
    """
    assert count <= PREFILL_CHUNK
    assert count == 1 or not generated
    cache.planned = max(cache.planned, cache.length + len(ids))
    native = native_of(model)
    borders = [] if native is None else _borders(generated)
    alone = bool(cache.recurrent) and (trace is None or trace.rows == slice(-count, None))
    chunk = chunk_of(model) if len(ids) > 1 else PREFILL_CHUNK  # decoding does not ask
    edges = _edges(cache.length, len(ids), count, chunk, borders, alone=alone)
    for start, end in edges[:-1]:
        _pass(model, native, ids[start:end], cache, 0, None, decodes=_within(borders, cache.length))
        yield
    last = ids[edges[-1][0] :]
    return _pass(model, native, last, cache, count, trace, decodes=_within(borders, cache.length))


def parts_of(model: Transformer, length: int, generated: Sequence[Span] = ()) -> list[Part]:
    """Return the parts that ``read`` computes separately in a text of ``length`` tokens.

    Parts end at multiples of ``chunk_of`` positions, so what a cache holds of a part does not depend on what follows,
    and texts with the same beginning can share it. If the compiled engine decodes, parts also end at both ends of each
    ``generated`` span, whose positions are computed one by one, as when they were generated.
    """
    borders = [] if native_of(model) is None else _borders(generated)
    edges = _edges(0, length, 1, chunk_of(model), borders, alone=False)
    return [Part(start, end, _within(borders, start)) for start, end in edges]


def native_of(model: Transformer) -> NativeStep | None:
    """The compiled engine, if it decodes the model."""
    return model.native if isinstance(model, EngineTransformer) else None


def _borders(generated: Sequence[Span]) -> list[int]:
    """The starts and ends of generated spans, alternating, with adjacent spans merged."""
    borders: list[int] = []
    for start, end in sorted(span for span in generated if span[0] < span[1]):
        if borders and start <= borders[-1]:
            borders[-1] = max(borders[-1], end)
        else:
            borders += (start, end)
    return borders


def _within(borders: Sequence[int], position: int) -> bool:
    """Whether a position was generated."""
    return bisect_right(borders, position) % 2 == 1


def chunk_of(model: Transformer) -> int:
    """Positions per forward pass over a prompt: fewer on a CPU, unless each pass has to restore quantized weights."""
    restored = any(isinstance(module, QuantizedMatrix) for module in model.blocks[0].modules())
    return CPU_CHUNK if model.device.type == "cpu" and not restored else PREFILL_CHUNK


def _pass(
    model: Transformer,
    native: NativeStep | None,
    ids: Sequence[int],
    cache: KVCache,
    count: int,
    trace: Trace | None,
    *,
    decodes: bool,
) -> Tensor:
    """One forward pass over ``ids``; the logits after each of the last ``count``, [count, V].

    ``decodes``: each token is computed by itself, however many there are.
    """
    if native is None or (len(ids) > NATIVE_PROMPT and not decodes):
        return _torch_pass(model, ids, cache, count, trace)
    if trace is not None:
        past = cache.length
        _torch_pass(model, ids, cache, count, trace)
        cache.truncate(past)
        assert cache.length == past, "a window keeps more than a few tokens in reserve"
    ends = [min(start + MAX_ROWS, len(ids)) for start in range(0, len(ids), MAX_ROWS)]
    parts = []
    for start, end in zip([0, *ends], ends, strict=False):
        wanted = max(end - max(start, len(ids) - count), 0)
        parts.append(native.feed(ids[start:end], cache, wanted))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _torch_pass(model: Transformer, ids: Sequence[int], cache: KVCache, count: int, trace: Trace | None) -> Tensor:
    with torch.inference_mode():
        if len(ids) == 1 and count and trace is None and replays(model):
            return decode(model, ids[0], cache)
        x = model.hidden(torch.tensor([ids], device=model.device), cache, trace)
        return model.unembed(x[0, len(ids) - count :]) if count else x[0, :0]


def _edges(
    first: int, length: int, count: int, chunk: int, borders: Sequence[int], *, alone: bool
) -> list[tuple[int, int]]:
    """The (start, end) of each pass over ``length`` tokens that follow ``first`` cached positions.

    The last pass has all ``count`` tokens whose logits are wanted, and only those if ``alone``: recurrent layers then
    keep the state before them, so that the text can be truncated there.
    """
    inner = set(range(chunk - first % chunk, length - count + 1, chunk))
    inner |= {border - first for border in borders if first < border < first + length}
    if alone and length > count:
        inner.add(length - count)
    return list(itertools.pairwise([0, *sorted(inner), length]))
