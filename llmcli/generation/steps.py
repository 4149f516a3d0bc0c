"""The autoregressive loop: prefill the prompt once, then choose a token, feed it, and so on.

Commands, views and library users all iterate over this one loop.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from llmcli.engine.cuda_graph import decode, replays
from llmcli.errors import usage_error
from llmcli.generation.grammar import Ending
from llmcli.generation.sampling import Choice, Sampler
from llmcli.model.cache import KVCache
from llmcli.model.positions import planned_length
from llmcli.model.trace import Trace
from llmcli.model.transformer import Transformer

Finish = Literal["length", "stop_token", "context", "grammar"]

MOST_GUESSES = 8  # tokens that one pass checks beside the one that it must: more are seldom all right
SINKS = 4  # tokens at the very beginning that a rolling context keeps: many heads rest on them (Xiao et al. 2023)
PREFILL_CHUNK = 512  # positions a forward pass: bounds memory on long prompts at no cost in speed


@dataclass(frozen=True)
class Step:
    """One token. ``position`` is its place in the context; ``finish`` says why it is the last, if it is.

    ``ending`` tells whether the text would be what a grammar asks for if it ended here; None without one.
    """

    index: int
    position: int
    token: int
    logits: Tensor  # [V], fp32: what the choice was made from
    choice: Choice
    finish: Finish | None
    trace: Trace | None  # of the forward pass that gave the logits, where it was observed
    ending: Ending | None = None


class Guesser(Protocol):
    """Guesses how a text goes on; see ``speculate``. It counts the tokens ``guessed``, and those ``kept``."""

    guessed: int
    kept: int

    def guess(self, ids: Sequence[int], count: int, sampler: Sampler) -> list[int]:
        """Up to ``count`` tokens that may follow ``ids``, in which ``sampler`` will choose."""


def steps(
    model: Transformer,
    prompt_ids: Sequence[int],
    *,
    sampler: Sampler,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    cache: KVCache | None = None,
    observe: Collection[int] = (),
    guesser: Guesser | None = None,
    rolls: bool = False,
) -> Generator[Step, int | None, None]:
    """Yield up to ``max_new_tokens`` steps that continue ``prompt_ids``.

    ``cache`` may hold a beginning of the prompt, which is not read again, and holds all but the last
    token afterwards. ``observe`` are indices of steps whose forward pass is traced. ``guesser`` lets one
    pass check several tokens; see ``speculate``. Where the context ``rolls``, one that is full loses its older half
    (see ``roll``), which ends the text otherwise. Who iterates with ``send(token)`` puts that token in
    place of the chosen one. Nothing is computed for zero tokens, nor after the last.
    Errors: an empty prompt, or one that leaves no room in the context.
    """
    if max_new_tokens < 1:
        return
    check_prompt(model, prompt_ids)
    cache = model.new_cache() if cache is None else cache
    assert cache.length < len(prompt_ids)
    ids, index, limit = list(prompt_ids), 0, model.config.max_position_embeddings
    cache.planned = planned_length(model.config.rope, len(ids), min(len(ids) + max_new_tokens, limit))
    try:
        while True:
            if len(ids) == limit:
                cache.truncate(roll(ids, limit))
            forget_stale(model, len(ids), cache)
            trace = Trace(rows=slice(-1, None)) if index in observe else None
            guesses: list[int] = []
            if guesser is not None and trace is None:
                seen = [i - index for i in observe if i > index]
                room = min(*seen, max_new_tokens - index, limit - len(ids)) - 1
                guesses = guesser.guess(ids, min(room, MOST_GUESSES), sampler)
                unread = len(ids) - cache.length
                if model.span(cache, unread + len(guesses)) != model.span(cache, unread):
                    guesses = []  # they would turn the tokens before them by angles that may never be needed
                guesser.guessed += len(guesses)
            passed = [*ids[cache.length :], *guesses]
            for logits, guess in zip(
                logits_behind(model, passed, cache, 1 + len(guesses), trace), [*guesses, None], strict=True
            ):
                choice, position = sampler.choose(logits, ids), len(ids)
                asked, room = max_new_tokens - index - 1, limit - position - 1 + rolls
                ending = sampler.ending(ids, choice.id)
                finish = ended(choice.id, stop_ids, asked, room, ending)
                instead = yield Step(index, position, choice.id, logits, choice, finish, trace, ending)
                if instead is not None:
                    finish = ended(instead, stop_ids, asked, room, sampler.ending(ids, instead))
                if finish:
                    return
                index += 1
                ids.append(choice.id if instead is None else instead)
                if guesser is None or guess != ids[-1]:
                    break
                guesser.kept += 1
            cache.truncate(len(ids) - 1)
    finally:
        cache.truncate(min(cache.length, len(ids)))


def ended(token: int, stop_ids: Collection[int], asked: int, room: int, ending: Ending | None = None) -> Finish | None:
    """Why a token is the last, if it is: ``asked`` more were asked for, ``room`` more fit behind it.

    ``ending`` is what a grammar says of the text with it.
    """
    if token in stop_ids:
        return "stop_token"
    if ending == "must":
        return "grammar"
    if asked == 0:
        return "length"
    return "context" if room <= 0 else None


def roll(ids: list[int], limit: int) -> int:
    """Take the older half out of a full context, but for its first few tokens; how many those are."""
    kept = min(SINKS, limit // 4)
    del ids[kept : len(ids) - limit // 2]
    return kept


def check_prompt(model: Transformer, prompt_ids: Sequence[int]) -> None:
    """Raise where there is no prompt, or one that leaves no room in the context."""
    check_room(model, len(prompt_ids))
    if not prompt_ids:
        raise usage_error("the prompt is empty and the model has no BOS token to start from", "give a prompt")


def check_room(model: Transformer, length: int) -> None:
    """Raise unless a prompt of ``length`` tokens leaves room for one more."""
    limit = model.config.max_position_embeddings
    if length >= limit:
        raise usage_error(
            f"the prompt is {length} tokens long, but the model's context is {limit}",
            f"shorten it to at most {limit - 1} tokens (llmcli tokenize --count counts them)",
        )


def shared(before: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids)))


def forget_stale(model: Transformer, length: int, cache: KVCache) -> None:
    """Empty the cache where a text of ``length`` turns its positions otherwise than they were: to be read anew."""
    if model.stale(cache, length - cache.length):
        cache.truncate(0)


def next_logits(model: Transformer, ids: Sequence[int], cache: KVCache, trace: Trace | None = None) -> Tensor:
    """Feed ``ids`` through the cache; the logits that follow the last of them, fp32 [V]."""
    return logits_behind(model, ids, cache, 1, trace)[0]


def logits_behind(
    model: Transformer, ids: Sequence[int], cache: KVCache, count: int, trace: Trace | None = None
) -> Tensor:
    """Feed ``ids`` through the cache; the logits that follow each of the last ``count`` of them, fp32 [count, V]."""
    assert count <= PREFILL_CHUNK
    cache.planned = max(cache.planned, cache.length + len(ids))
    with torch.inference_mode():
        if len(ids) == 1 and trace is None and replays(model):
            return decode(model, ids[0], cache)
        short = len(ids) % PREFILL_CHUNK or PREFILL_CHUNK  # the first, so that the last holds all asked for
        for start in range(short - PREFILL_CHUNK, len(ids), PREFILL_CHUNK):
            chunk = torch.tensor([ids[max(start, 0) : start + PREFILL_CHUNK]], device=model.device)
            x = model.hidden(chunk, cache, trace if start + PREFILL_CHUNK >= len(ids) else None)
        return model.unembed(x[0, -count:]).float()
