"""The work of one model: its prompts are read, and all its texts advance together, one token each per step.

A prompt is read in passes, one between two steps of the running texts. Clients take turns, no matter how many requests
each has. A text does not depend on the others that run with it: each pass and each step computes every text by itself.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from torch import Tensor

from llmcli import explain
from llmcli.errors import LlmcliError, out_of_memory
from llmcli.generation.batch import Batch, BatchStep, Request
from llmcli.generation.context import angle_length, check_prompt
from llmcli.generation.generate import TextFinish
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.reading import Span, read
from llmcli.model.cache import KVCache
from llmcli.serve.errors import ApiError, api_error
from llmcli.serve.model_thread import ModelThread
from llmcli.serve.prefixes import Prefixes


@dataclass(frozen=True)
class Progress:
    """One generated token of the text ``key``, and the ``chunk`` of text that it completes.

    ``token`` has its probabilities, None if the request did not ask for them. ``finish`` is why the text ended, None
    before its last token. ``cached`` is the number of prompt tokens that the prefix cache held.
    """

    key: int
    chunk: str
    token: explain.GeneratedToken | None
    finish: TextFinish | None
    cached: int


Event = Progress | ApiError


@dataclass(eq=False)
class Task:
    """Texts that continue one prompt.

    ``deliver`` is called with each event, in the models' thread; an ApiError ends all of the task's texts.
    ``alternatives`` is the number of alternatives to report for each token, None for no probabilities. ``generated``
    are the spans of the prompt that the model wrote. A task that is ``gone`` was canceled or has failed.
    """

    client: str
    requests: Sequence[Request]
    deliver: Callable[[Event], None]
    alternatives: int | None = None
    generated: Sequence[Span] = ()
    gone: bool = False


@dataclass(eq=False)
class Call:
    """Something else to compute with the model: ``run`` between two steps."""

    client: str
    run: Callable[[], None]
    gone: bool = False


@dataclass(eq=False)
class Reading:
    """A prompt that is being read. ``logits`` follow it once that is done; ``left`` are the texts to start then."""

    task: Task
    cache: KVCache
    passes: Generator[None, None, Tensor]
    cached: int
    left: deque[Request]
    logits: Tensor | None = None

    @property
    def client(self) -> str:
        return self.task.client

    @property
    def gone(self) -> bool:
        return self.task.gone


@dataclass
class Counts:
    """Token counts since the scheduler started."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0


class Scheduler:
    """Runs up to ``parallel`` texts at once, in ``thread``; at most ``most_waiting`` requests wait."""

    def __init__(
        self,
        loaded: LoadedModel,
        thread: ModelThread,
        *,
        parallel: int,
        most_waiting: int,
        prefix_bytes: int,
    ) -> None:
        self.loaded, self.parallel, self.most_waiting = loaded, parallel, most_waiting
        self.counts = Counts()
        self.prefixes = Prefixes(loaded.model, prefix_bytes)
        self._batch = self._new_batch()
        # Those in the batch by the id of each request, and what is cached.
        self._tasks: dict[int, tuple[Task, int]] = {}
        self._reading: Reading | None = None
        # By client; the next one is the first. A prompt that was read waits again while not all its texts have begun.
        self._waiting: OrderedDict[str, deque[Task | Call | Reading]] = OrderedDict()
        self._changed = thread.changed
        thread.add(self)

    @property
    def running(self) -> int:
        """The number of texts that are generated now."""
        return len(self._batch.rows)

    @property
    def waiting(self) -> int:
        """The number of requests whose turn has not come."""
        with self._changed:
            return sum(map(len, self._waiting.values()))

    def submit(self, tasks: Sequence[Task | Call], *, admitted: bool = False) -> None:
        """Queue tasks. Raises ApiError (429) if the queue is full, unless their request was already ``admitted``."""
        with self._changed:
            waiting = sum(map(len, self._waiting.values()))
            if waiting and not admitted and waiting + len(tasks) > self.most_waiting:
                seconds = max(1, waiting // self.parallel)
                raise ApiError(
                    429,
                    f"the queue is full: {waiting} of {self.most_waiting} places are taken",
                    code="queue_full",
                    headers={"Retry-After": str(min(seconds, 60))},
                )
            for task in tasks:
                self._waiting.setdefault(task.client, deque()).append(task)
            self._changed.notify()

    def withdraw(self, tasks: Sequence[Task | Call]) -> None:
        """Give up tasks: those that run end at the next step."""
        with self._changed:
            for task in tasks:
                task.gone = True
            queues = [
                (client, deque(each for each in queue if not each.gone)) for client, queue in self._waiting.items()
            ]
            self._waiting = OrderedDict((client, queue) for client, queue in queues if queue)
            self._changed.notify()

    @property
    def busy(self) -> bool:
        """Whether there is work for a ``turn``."""
        return bool(self._waiting or self._reading or self._batch.rows)

    def turn(self) -> None:
        """Make one pass over a prompt, and one step of all texts."""
        for row in list(self._batch.rows):
            if self._tasks[id(row.request)][0].gone:
                self._batch.leave(row.request)
                del self._tasks[id(row.request)]
        if self._reading is not None and self._reading.gone:
            self._reading = None
        if self._reading is None and self._batch.has_room:
            self._begin(self._next())
        reading = self._reading
        if reading is not None and reading.logits is None:
            self._guarded(self._read_on, reading.task)
        if reading is not None and reading.logits is not None:
            self._guarded(self._join)
        if self._batch.rows:
            self._guarded(self._advance)

    def _next(self) -> Task | Call | Reading | None:
        """The first task of the client whose turn it is."""
        with self._changed:
            if not self._waiting:
                return None
            client, queue = self._waiting.popitem(last=False)
            task = queue.popleft()
            if queue:
                self._waiting[client] = queue  # after all others
            return task

    def _begin(self, task: Task | Call | Reading | None) -> None:
        if isinstance(task, Call):
            task.run()
        elif isinstance(task, Reading):
            self._reading = task
        elif task is not None:
            self._guarded(lambda: self._open(task), task)

    def _open(self, task: Task) -> None:
        """Prepare to read the prompt of a task."""
        model, request = self.loaded.model, task.requests[0]
        ids = list(request.prompt_ids)
        check_prompt(model, ids)
        planned = angle_length(model.config, len(ids), request.max_new_tokens)
        cache = self.prefixes.find(ids, planned, task.generated)
        cached = cache.length
        self.counts.prompt_tokens += len(ids)
        self.counts.cached_tokens += cached
        passes = read(model, ids[cached:], cache, generated=task.generated)
        self._reading = Reading(task, cache, passes, cached, deque(task.requests))

    def _read_on(self) -> None:
        """Make one more pass over the prompt."""
        reading = self._reading
        assert reading is not None
        ids = reading.left[0].prompt_ids
        try:
            next(reading.passes)
        except StopIteration as end:
            reading.logits = end.value[0]
        self.prefixes.keep(ids, reading.cache, reading.task.generated)

    def _join(self) -> None:
        """Start as many texts of the prompt as there is room for. The others wait after those of other clients."""
        reading = self._reading
        assert reading is not None
        assert reading.logits is not None
        while reading.left and self._batch.has_room and not reading.gone:
            request = reading.left.popleft()
            self._tasks[id(request)] = reading.task, reading.cached
            self._deliver(self._batch.join(request, reading.cache, reading.logits))
        self._reading = None
        with self._changed:
            if reading.left and not reading.gone:
                self._waiting.setdefault(reading.client, deque()).appendleft(reading)
                self._waiting.move_to_end(reading.client)

    def _new_batch(self) -> Batch:
        return Batch(self.loaded, self.parallel, self._keep)

    def _keep(self, request: Request, ids: Sequence[int], cache: KVCache) -> None:
        """Keep a text that ends, for the next turn of its conversation."""
        task, _ = self._tasks[id(request)]
        self.prefixes.keep(ids, cache, [*task.generated, (len(request.prompt_ids), len(ids))])

    def _advance(self) -> None:
        for step in self._batch.advance():
            self._deliver(step)

    def _deliver(self, step: BatchStep) -> None:
        """Tell a task about one step of one of its texts."""
        task, cached = self._tasks[id(step.request)]
        if step.done:
            del self._tasks[id(step.request)]
        if step.error is not None:
            task.gone = True
            task.deliver(api_error(step.error))
            return
        assert step.step is not None
        self.counts.generated_tokens += 1
        token = None
        if task.alternatives is not None:
            token = explain.generated_token_of(step.step, self.loaded.tokenizer, task.alternatives)
        finish = step.text.finish if step.done else None
        task.deliver(Progress(step.request.key, step.chunk, token, finish, cached))

    def _guarded(self, run: Callable[[], None], task: Task | None = None) -> None:
        """Run part of a turn. If it raises, fail ``task``; without a task, fail all texts.

        After an error in a step of all texts, their caches may hold different numbers of tokens.
        """
        try:
            run()
        except Exception as error:
            found = error if isinstance(error, LlmcliError) else out_of_memory(error)
            answer = ApiError(500, f"internal error: {type(error).__name__}") if found is None else api_error(found)
            reading = [self._reading.task] if self._reading is not None else []
            failed = {id(each): each for each in [*(each for each, _ in self._tasks.values()), *reading]}
            for each in [task] if task is not None else failed.values():
                each.gone = True
                each.deliver(answer)
            self._reading = None
            if task is None:
                self._batch, self._tasks = self._new_batch(), {}
