"""Many texts at once: side by side in one batch, each as if it were alone, and the next as soon as one has ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from llmcli.engine.batch import BatchedCache
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import Step, check_prompt, ended, next_logits, roll
from llmcli.generation.text import Generation, Writing
from llmcli.model.cache import KVCache
from llmcli.model.positions import planned_length

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """A text to write; ``key`` is whatever its owner knows it by. The sampler is its own, and nobody else's."""

    key: int
    prompt_ids: Sequence[int]
    sampler: Sampler
    max_new_tokens: int
    stop: Sequence[str] = ()
    rolls: bool = False  # as of ``steps``


@dataclass(frozen=True)
class Written:
    """One step of a task: the text that it completes, and its writing so far. ``done`` with the last.

    A task that asks for no tokens has one of these, without a step.
    ``logprob`` is the sum of all its tokens' so far, in nats, by the model's own probabilities.
    """

    task: Task
    writing: Writing
    step: Step | None
    text: str
    logprob: float
    done: bool

    @property
    def mean_logprob(self) -> float | None:
        """A token, so that a long text is no worse for its length; None where there are none."""
        return self.logprob / self.writing.tokens if self.writing.tokens else None


def write_many(loaded: LoadedModel, tasks: Iterable[Task], size: int) -> Iterator[Written]:
    """The steps of all tasks, up to ``size`` of them side by side, each in its own order.

    A task is begun as soon as there is room. Errors: those of ``steps``.
    """
    if size == 1:
        for only in tasks:
            yield from write_one(loaded, only)
        return
    batch, coming = Batch(loaded, size), iter(tasks)
    while True:
        while batch.room:
            task = next(coming, None)
            if task is None:
                break
            if task.max_new_tokens > 0:
                yield batch.begin(task)
            else:
                yield from write_one(loaded, task)
        if not batch.texts:
            return
        yield from batch.advance()


def write_one(loaded: LoadedModel, task: Task) -> Iterator[Written]:
    """A task without company, by the loop for one text, which need not fill a block of rows."""
    generation = Generation(
        loaded,
        task.prompt_ids,
        sampler=task.sampler,
        max_new_tokens=task.max_new_tokens,
        stop=task.stop,
        rolls=task.rolls,
    )
    logprob = 0.0
    for step, text in generation:
        logprob += float(step.logits.log_softmax(dim=-1)[step.token])
        yield Written(task, generation, step, text, logprob, step.finish is not None or generation.stopped)
    if not generation.tokens:
        yield Written(task, generation, None, "", logprob, True)


class InOrder(Generic[T]):
    """What happens to texts 0, 1, 2 ... side by side, put in order: all of text 0 first, then of text 1."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[T]] = {}
        self._ended: set[int] = set()
        self._current = 0

    def put(self, key: int, item: T, *, done: bool) -> list[T]:
        """Whose turn it is now: this one, if it is its text's, and with a text's last those that waited behind."""
        if done:
            self._ended.add(key)
        if key != self._current:
            self._waiting.setdefault(key, []).append(item)
            return []
        ready = [item]
        while self._current in self._ended:
            self._ended.remove(self._current)
            self._current += 1
            ready += self._waiting.pop(self._current, [])
        return ready


@dataclass
class _Text:
    """A task in the batch, and all tokens of it."""

    task: Task
    writing: Writing
    ids: list[int]
    logprob: float = 0.0


class Batch:
    """Up to ``size`` texts of one model. Prompts are read one by one, and a repeated one not again."""

    def __init__(self, loaded: LoadedModel, size: int) -> None:
        self.loaded, self.size = loaded, size
        self.texts: list[_Text] = []
        self._rows = BatchedCache(loaded.model)
        self._last: tuple[tuple[int, ...], int, KVCache, Tensor] | None = None  # the prompt read last

    @property
    def room(self) -> bool:
        return len(self.texts) < self.size

    def begin(self, task: Task) -> Written:
        """Read a prompt and choose its first token. Errors: it is empty, or leaves no room in the context."""
        check_prompt(self.loaded.model, task.prompt_ids)
        cache, logits = self._read(task)
        text = _Text(task, Writing(self.loaded.tokenizer, task.prompt_ids, task.stop), list(task.prompt_ids))
        written = self._choose(text, logits)
        if not written.done:
            self.texts.append(text)
            self._rows.add(cache)
        return written

    def advance(self) -> Iterator[Written]:
        """One token more of each text."""
        limit = self.loaded.model.config.max_position_embeddings
        for row, text in reversed(list(enumerate(self.texts))):
            full = len(text.ids) == limit
            if full:
                roll(text.ids, limit)
            if full or self._rows.stale(row):
                self._reread(row)
        logits = self._rows.step([text.ids[-1] for text in self.texts])
        written = [self._choose(text, row) for text, row in zip(self.texts, logits, strict=True)]
        for row in reversed(range(len(written))):
            if written[row].done:
                self._drop(row)
        yield from written

    def _choose(self, text: _Text, logits: Tensor) -> Written:
        """The token that follows, as the loop for one text chooses it."""
        task, position = text.task, len(text.ids)
        index, limit = text.writing.tokens, self.loaded.model.config.max_position_embeddings
        choice = task.sampler.choose(logits, text.ids)
        asked, room = task.max_new_tokens - index - 1, limit - position - 1 + task.rolls
        ending = task.sampler.ending(text.ids, choice.id)
        finish = ended(choice.id, self.loaded.stop_ids, asked, room, ending)
        step = Step(index, position, choice.id, logits, choice, finish, None, ending)
        text.ids.append(choice.id)
        chunk = text.writing.take(step)
        text.logprob += float(logits.log_softmax(dim=-1)[choice.id])
        return Written(task, text.writing, step, chunk, text.logprob, finish is not None or text.writing.stopped)

    def _read(self, task: Task) -> tuple[KVCache, Tensor]:
        """A cache that holds the task's prompt, and the logits that follow."""
        model, prompt = self.loaded.model, tuple(task.prompt_ids)
        total = min(len(prompt) + task.max_new_tokens, model.config.max_position_embeddings)
        length = planned_length(model.config.rope, len(prompt), total)
        if self._last is None or self._last[:2] != (prompt, length):
            cache = model.new_cache()
            cache.planned = length
            self._last = (prompt, length, cache, next_logits(model, prompt, cache))
        return self._last[2:]

    def _reread(self, row: int) -> None:
        """Turn a text's keys anew. It becomes the last."""
        text = self.texts[row]
        cache = self.loaded.model.new_cache()
        cache.planned = self._rows.planned(row)
        if len(text.ids) > 1:
            next_logits(self.loaded.model, text.ids[:-1], cache)
        self._drop(row)
        self.texts.append(text)
        self._rows.add(cache)

    def _drop(self, row: int) -> None:
        """Take a text out; the last one moves into its place."""
        self._rows.remove(row)
        self.texts[row] = self.texts[-1]
        self.texts.pop()
