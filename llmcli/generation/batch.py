"""Many texts in one batch: each is generated as if it were alone, and the next one starts as soon as one ends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from llmcli.engine.batch import batch_cache
from llmcli.errors import LlmcliError
from llmcli.generation.context import angle_length, check_prompt
from llmcli.generation.generate import GeneratedText, Generation
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.reading import next_logits, reread
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import Continuation, Step
from llmcli.model.cache import KVCache


@dataclass(frozen=True)
class Request:
    """A text to generate. ``key`` identifies it to the caller. No other request may use its ``sampler``."""

    key: int
    prompt_ids: Sequence[int]
    sampler: Sampler
    max_new_tokens: int
    stop: Sequence[str] = ()
    rolls: bool = False  # as in ``steps``
    shown: Collection[int] = ()  # the special tokens that its text has
    stop_ids: Collection[int] | None = None  # None: the model's


@dataclass(frozen=True)
class BatchStep:
    """One step of a request: the ``chunk`` of text that it completes, and the whole text so far.

    ``done`` marks the last step. A request for no tokens has one ``BatchStep``, whose ``step`` is None. ``logprob`` is
    the sum over all tokens so far, in nats, by the model's own probabilities. ``error`` is why no token could be
    chosen; the other requests go on.
    """

    request: Request
    text: GeneratedText
    step: Step | None
    chunk: str
    logprob: float
    done: bool
    error: LlmcliError | None = None

    @property
    def mean_logprob(self) -> float | None:
        """The log probability per token in nats, which does not depend on the length; None without tokens."""
        return self.logprob / self.text.tokens if self.text.tokens else None


def generate_batch(loaded: LoadedModel, requests: Iterable[Request], size: int) -> Iterator[BatchStep]:
    """The steps of all requests, up to ``size`` of them in parallel; the steps of one request come in order.

    A request is taken from ``requests`` as soon as there is room. Raises the errors of ``steps``.
    """
    if size == 1:
        for request in requests:
            yield from generate_alone(loaded, request)
        return
    batch, waiting = Batch(loaded, size), iter(requests)
    while True:
        while batch.has_room:
            next_request = next(waiting, None)
            if next_request is None:
                break
            if next_request.max_new_tokens > 0:
                yield _checked(batch.start(next_request))
            else:
                yield from generate_alone(loaded, next_request)
        if not batch.rows:
            return
        yield from map(_checked, batch.advance())


def _checked(step: BatchStep) -> BatchStep:
    """Return ``step``. Raises its error, if it has one."""
    if step.error is not None:
        raise step.error
    return step


def generate_alone(loaded: LoadedModel, request: Request) -> Iterator[BatchStep]:
    """The steps of one request, from the loop for single texts, which is faster than a padded batch of one."""
    generation = Generation(
        loaded,
        request.prompt_ids,
        sampler=request.sampler,
        max_new_tokens=request.max_new_tokens,
        stop=request.stop,
        rolls=request.rolls,
        shown=request.shown,
    )
    logprob = 0.0
    for step, chunk in generation:
        logprob += _logprob(step)
        done = step.finish is not None or generation.stopped
        yield BatchStep(request, generation, step, chunk, logprob, done)
    if not generation.tokens:
        yield BatchStep(request, generation, None, "", logprob, True)


@dataclass
class _Row:
    """One request in the batch, and what was generated for it. ``reread``: its cache was recomputed meanwhile."""

    request: Request
    tokens: Continuation
    text: GeneratedText
    logprob: float = 0.0
    reread: bool = False


class Batch:
    """Up to ``size`` texts of one model. Prompts are read one at a time; a repeated prompt is read only once.

    ``ended`` is called when a text leaves: with its request, its ids and its cache. It is not called if the texts share
    a batched cache, or if the text's cache was recomputed.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        size: int,
        ended: Callable[[Request, Sequence[int], KVCache], None] = lambda *_: None,
    ) -> None:
        self.loaded, self.size, self._ended = loaded, size, ended
        self.rows: list[_Row] = []
        self._cache = batch_cache(loaded.model)
        self._last_prompt: tuple[tuple[int, ...], int, KVCache, Tensor] | None = None

    @property
    def has_room(self) -> bool:
        return len(self.rows) < self.size

    def start(self, request: Request) -> BatchStep:
        """Read a prompt and choose its first token. Raises LlmcliError if it is empty or does not fit the context."""
        check_prompt(self.loaded.model, request.prompt_ids)
        return self.join(request, *self._read(request))

    def join(self, request: Request, cache: KVCache, logits: Tensor) -> BatchStep:
        """Choose the first token of a request whose prompt ``cache`` holds; ``logits`` [V] follow it."""
        loaded, prompt = self.loaded, list(request.prompt_ids)
        context = loaded.model.config.max_position_embeddings
        stop_ids = loaded.stop_ids if request.stop_ids is None else request.stop_ids
        tokens = Continuation(prompt, request.sampler, request.max_new_tokens, context, stop_ids, request.rolls)
        row = _Row(request, tokens, GeneratedText(loaded.tokenizer, request.prompt_ids, request.stop, request.shown))
        step = self._choose(row, logits)
        if not step.done:
            self.rows.append(row)
            self._cache.add(cache)
        return step

    def leave(self, request: Request) -> None:
        """Remove a request before its text has ended. Does nothing if it has."""
        for number in [number for number, row in enumerate(self.rows) if row.request is request]:
            self._end(number)

    def advance(self) -> Iterator[BatchStep]:
        """Generate one more token of each text."""
        for number, row in reversed(list(enumerate(self.rows))):
            rolled = row.tokens.roll_if_full()
            if rolled or self._cache.stale(number):
                self._reread(number)
        logits = self._cache.step([row.tokens.ids[-1] for row in self.rows])
        steps = [self._choose(row, each) for row, each in zip(self.rows, logits, strict=True)]
        for number in reversed(range(len(steps))):
            if steps[number].done:
                self._end(number)
        yield from steps

    def _choose(self, row: _Row, logits: Tensor) -> BatchStep:
        """Choose the next token of one text, given its logits [V]."""
        try:
            step = row.tokens.choose(logits)
        except LlmcliError as error:
            return BatchStep(row.request, row.text, None, "", row.logprob, True, error)
        row.tokens.append(step.token)
        chunk = row.text.add(step)
        row.logprob += _logprob(step)
        return BatchStep(row.request, row.text, step, chunk, row.logprob, step.finish is not None or row.text.stopped)

    def _read(self, request: Request) -> tuple[KVCache, Tensor]:
        """A cache that holds the prompt, and the logits after it [V]."""
        model, prompt = self.loaded.model, tuple(request.prompt_ids)
        length = angle_length(model.config, len(prompt), request.max_new_tokens)
        if self._last_prompt is None or self._last_prompt[:2] != (prompt, length):
            cache = model.new_cache()
            cache.planned = length
            self._last_prompt = (prompt, length, cache, next_logits(model, prompt, cache))
        return self._last_prompt[2:]

    def _reread(self, number: int) -> None:
        """Recompute the keys and values of a text, which moves to the last row."""
        row = self.rows[number]
        row.reread = True
        cache = self.loaded.model.new_cache()
        cache.planned = self._cache.planned(number)
        reread(self.loaded.model, row.tokens.ids, cache)
        self._remove(number)
        self.rows.append(row)
        self._cache.add(cache)

    def _end(self, number: int) -> None:
        """Remove a text that has ended."""
        row, cache = self.rows[number], self._remove(number)
        if cache is not None and not row.reread:
            self._ended(row.request, row.tokens.ids, cache)

    def _remove(self, number: int) -> KVCache | None:
        """Remove a text; the last one moves into its row. Returns the text's cache, if it has one of its own."""
        cache = self._cache.remove(number)
        self.rows[number] = self.rows[-1]
        self.rows.pop()
        return cache


def _logprob(step: Step) -> float:
    """The model's own log probability of the step's token, in nats."""
    return step.choice.softmax.logprob(step.token)
