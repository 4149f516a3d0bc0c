"""The autoregressive loop: prefill the prompt once, then choose a token, feed it, and so on.

Commands, views and library users all iterate over this one loop.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llmcli.errors import usage_error
from llmcli.generate.sampling import Choice, Sampler
from llmcli.model.cache import KVCache
from llmcli.model.device import decode_kernels
from llmcli.model.rope import planned
from llmcli.model.trace import Trace
from llmcli.model.transformer import Transformer

Finish = Literal["length", "stop_token", "context"]

PREFILL_CHUNK = 512  # positions a forward pass: bounds memory on long prompts at no cost in speed


@dataclass(frozen=True)
class Step:
    """One token. ``position`` is its place in the context; ``finish`` says why it is the last, if it is."""

    index: int
    position: int
    token: int
    logits: Tensor  # [V], fp32: what the choice was made from
    choice: Choice
    finish: Finish | None
    trace: Trace | None  # of the forward pass that gave the logits, where it was observed


def steps(
    model: Transformer,
    prompt_ids: Sequence[int],
    *,
    sampler: Sampler,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    cache: KVCache | None = None,
    observe: Collection[int] = (),
) -> Generator[Step, int | None, None]:
    """Yield up to ``max_new_tokens`` steps that continue ``prompt_ids``.

    ``cache`` may hold a beginning of the prompt, which is not read again, and holds all but the last
    token afterwards. ``observe`` are indices of steps whose forward pass is traced. Who iterates with
    ``send(token)`` puts that token in place of the chosen one. Nothing is computed for zero tokens,
    nor after the last. Errors: an empty prompt, or one that leaves no room in the context.
    """
    if max_new_tokens < 1:
        return
    check_room(model, len(prompt_ids))
    if not prompt_ids:
        raise usage_error("the prompt is empty and the model has no BOS token to start from", "give a prompt")
    cache = model.new_cache() if cache is None else cache
    assert cache.length < len(prompt_ids)
    ids = list(prompt_ids)
    total = min(len(ids) + max_new_tokens, model.config.max_position_embeddings)
    cache.planned = planned(model.config.rope, len(ids), total)
    for index in range(max_new_tokens):
        if model.stale(cache, len(ids) - cache.length):
            cache.truncate(0)
        trace = Trace(rows=slice(-1, None)) if index in observe else None
        logits = next_logits(model, ids[cache.length :], cache, trace)
        choice = sampler.choose(logits)
        position = cache.length
        finish: Finish | None = None
        if choice.id in stop_ids:
            finish = "stop_token"
        elif index + 1 == max_new_tokens:
            finish = "length"
        elif position + 1 >= model.config.max_position_embeddings:
            finish = "context"
        instead = yield Step(index, position, choice.id, logits, choice, finish, trace)
        if finish:
            return
        ids.append(choice.id if instead is None else instead)


def check_room(model: Transformer, length: int) -> None:
    """Raise unless a prompt of ``length`` tokens leaves room for one more."""
    limit = model.config.max_position_embeddings
    if length >= limit:
        raise usage_error(
            f"the prompt is {length} tokens long, but the model's context is {limit}",
            f"shorten it to at most {limit - 1} tokens (llmcli tokenize --count counts them)",
        )


def next_logits(model: Transformer, ids: Sequence[int], cache: KVCache, trace: Trace | None = None) -> Tensor:
    """Feed ``ids`` through the cache; the logits that follow the last of them, fp32 [V]."""
    cache.planned = max(cache.planned, cache.length + len(ids))
    with torch.inference_mode(), decode_kernels(model.device, len(ids)):
        for start in range(0, len(ids), PREFILL_CHUNK):
            chunk = torch.tensor([ids[start : start + PREFILL_CHUNK]], device=model.device)
            last = start + PREFILL_CHUNK >= len(ids)
            x = model.hidden(chunk, cache, trace if last else None)
        return model.unembed(x[0, -1]).float()
