"""The autoregressive loop: prefill the prompt once, then choose a token, append it, feed it to the model, and repeat.

Commands, views and library users all iterate over this one loop. Batches (``generation.batch``) have a loop of their
own, but choose each token with the same ``Continuation``.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from llmcli.errors import usage_error
from llmcli.generation.context import angle_length, as_ids, check_prompt, roll
from llmcli.generation.grammar import Ending
from llmcli.generation.reading import clear_if_stale, last_logits, reread
from llmcli.generation.sampling import Choice, Sampler
from llmcli.model.cache import KVCache
from llmcli.model.device import one_thread
from llmcli.model.trace import Trace
from llmcli.model.transformer import Transformer

Finish = Literal["length", "stop_token", "context", "grammar"]

MAX_PROPOSED = 8  # tokens proposed per forward pass: longer proposals are seldom accepted to their end


@dataclass(frozen=True)
class Step:
    """One generated token.

    ``position`` is its place in the context. ``finish`` is the reason why it is the last token, or None. ``ending``
    says whether the grammar would let the text end here (None without a grammar). ``trace`` holds what was observed in
    the forward pass that computed the logits, if the step was to be observed.
    """

    index: int
    position: int
    token: int
    logits: Tensor  # [V], fp32: those that the token was chosen from
    choice: Choice
    finish: Finish | None
    trace: Trace | None
    ending: Ending | None = None


@dataclass
class Continuation:
    """The tokens of one text, and how the next one is chosen.

    ``ids`` are the tokens in the context, which holds at most ``context``; ``tokens`` counts the generated ones. If the
    context ``rolls``, a full context drops its older half instead of ending the text.
    """

    ids: list[int]
    sampler: Sampler
    max_new_tokens: int
    context: int
    stop_ids: Collection[int] = ()
    rolls: bool = False
    tokens: int = 0

    def __post_init__(self) -> None:
        self.sampler.begin(self.ids, self.stop_ids)

    def choose(self, logits: Tensor, trace: Trace | None = None) -> Step:
        """Choose the next token, given its logits [V]; ``append`` adds it to the text."""
        with one_thread():
            choice = self.sampler.choose(logits, self.ids)
        ending = self.sampler.ending(self.ids, choice.id)
        finish = self._finish(choice.id, ending)
        return Step(self.tokens, len(self.ids), choice.id, logits, choice, finish, trace, ending)

    def finish_after(self, token: int) -> Finish | None:
        """Why the text would end with ``token``, or None."""
        return self._finish(token, self.sampler.ending(self.ids, token))

    def append(self, token: int) -> None:
        """Add a token to the text."""
        self.sampler.accept(token)
        self.ids.append(token)
        self.tokens += 1

    def roll_if_full(self) -> bool:
        """Drop the older half if the context is full. Returns whether it was."""
        full = len(self.ids) == self.context
        if full:
            roll(self.ids, self.context)
        return full

    def _finish(self, token: int, ending: Ending | None) -> Finish | None:
        if token in self.stop_ids:
            return "stop_token"
        if ending == "must":
            return "grammar"
        if self.tokens + 1 == self.max_new_tokens:
            return "length"
        return "context" if len(self.ids) + 1 >= self.context and not self.rolls else None


class Proposer(Protocol):
    """Proposes tokens for speculative decoding. It counts the tokens ``proposed``, and those ``accepted``."""

    proposed: int
    accepted: int

    def propose(self, ids: Sequence[int], count: int, sampler: Sampler) -> list[int]:
        """Up to ``count`` tokens that may follow ``ids``; ``sampler`` will choose among them."""


def steps(
    model: Transformer,
    prompt_ids: Sequence[int],
    *,
    sampler: Sampler,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    rolls: bool = False,
    cache: KVCache | None = None,
    observe: Collection[int] = (),
) -> Generator[Step, int | None, None]:
    """Yield up to ``max_new_tokens`` steps that continue ``prompt_ids``.

    The text ends after a token of ``stop_ids``, or when the context is full, unless it ``rolls``. ``cache`` may already
    hold a prefix of the prompt; afterwards it holds all tokens but the last. ``observe`` lists the indices of steps
    whose forward pass is traced. ``send(token)`` replaces the chosen token. Nothing is computed for zero tokens, nor
    after the last one.

    Raises TypeError for arguments of the wrong type, such as a text for ``prompt_ids``. Raises LlmcliError if the model
    has no such ids and, when iteration starts, if the prompt is empty or leaves no room in the context.
    """
    if not isinstance(model, Transformer):
        raise TypeError(f"steps() takes a transformer, such as loaded.model, not {type(model).__name__}")
    if not isinstance(sampler, Sampler):
        raise TypeError(f"steps() takes a Sampler, not {type(sampler).__name__}")
    ids = as_ids(prompt_ids, model.config.vocab_size)
    context = model.config.max_position_embeddings
    text = Continuation(ids, sampler, operator.index(max_new_tokens), context, stop_ids, rolls)
    return decode_steps(model, text, cache=cache, observe=observe)


def decode_steps(
    model: Transformer,
    text: Continuation,
    *,
    cache: KVCache | None = None,
    observe: Collection[int] = (),
    proposer: Proposer | None = None,
) -> Generator[Step, int | None, None]:
    """Yield the steps of ``text``, as ``steps`` does. With a ``proposer``, decoding is speculative.

    See ``generation.speculative``: one forward pass then checks several proposed tokens.
    """
    if text.max_new_tokens < 1:
        return
    check_prompt(model, text.ids)
    cache = model.new_cache() if cache is None else cache
    assert cache.length < len(text.ids)
    cache.planned = angle_length(model.config, len(text.ids), text.max_new_tokens)
    try:
        while True:
            if text.roll_if_full():
                cache.truncate(0)
            clear_if_stale(model, len(text.ids), cache)
            if text.tokens:
                reread(model, text.ids, cache)
            trace = Trace(rows=slice(-1, None)) if text.tokens in observe else None
            proposed: list[int] = []
            # A pass over a prompt may round differently if there are more tokens in it.
            if proposer is not None and trace is None and cache.length == len(text.ids) - 1:
                proposed = _propose(model, text, cache, observe, proposer)
            unread = [*text.ids[cache.length :], *proposed]
            rows = last_logits(model, unread, cache, 1 + len(proposed), trace)
            for logits, proposal in zip(rows, [*proposed, None], strict=True):
                step = text.choose(logits, trace)
                replacement = yield step
                token, finish = step.token, step.finish
                if replacement is not None:
                    token, finish = replacement, text.finish_after(replacement)
                if finish:
                    return
                text.append(token)
                if proposer is None or proposal != token:
                    break
                proposer.accepted += 1
            cache.truncate(len(text.ids) - 1)
    finally:
        cache.truncate(min(cache.length, len(text.ids)))


def _propose(
    model: Transformer, text: Continuation, cache: KVCache, observe: Collection[int], proposer: Proposer
) -> list[int]:
    """Tokens to check in the next forward pass; none beyond the end of the text or a step to observe."""
    observed = [index - text.tokens for index in observe if index > text.tokens]
    room = min(*observed, text.max_new_tokens - text.tokens, text.context - len(text.ids)) - 1
    proposed = proposer.propose(text.ids, min(room, MAX_PROPOSED), text.sampler)
    unread = len(text.ids) - cache.length
    if model.span(cache, unread + len(proposed)) != model.span(cache, unread):
        return []  # they would change the angles of all earlier positions, perhaps for nothing
    proposer.proposed += len(proposed)
    return proposed


def step_at(
    model: Transformer,
    prompt_ids: Sequence[int],
    index: int,
    *,
    sampler: Sampler,
    stop_ids: Collection[int] = (),
    rolls: bool = False,
) -> tuple[Step, list[int]]:
    """Step ``index`` of ``steps``, and the ids of the context before it.

    Raises LlmcliError if the text ends earlier.
    """
    context, limit = list(prompt_ids), model.config.max_position_embeddings
    if index > limit and not rolls:  # without generating a whole context first
        raise usage_error(f"there is no step {index}: the model's context is {limit}", "choose an earlier step")
    for step in steps(model, prompt_ids, sampler=sampler, max_new_tokens=index + 1, stop_ids=stop_ids, rolls=rolls):
        if step.position < len(context):
            roll(context, limit)
        if step.index == index:
            return step, context
        context.append(step.token)
    raise usage_error(
        f"there is no step {index}: the text ended at step {step.index} ({step.finish})",
        f"choose a step from 0 to {step.index}",
    )
