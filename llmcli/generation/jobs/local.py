"""A batch that the model on this machine continues."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.generation.batch import BatchStep, Request, generate_batch
from llmcli.generation.jobs.prompts import ChatJob, Job
from llmcli.generation.jobs.results import digest, result
from llmcli.generation.jobs.run import JobUpdate
from llmcli.generation.loaded import LoadedModel, fit_prompt
from llmcli.generation.sampling import Sampler
from llmcli.generation.thinking import think_budget_of
from llmcli.text.chat_format import TemplateFormat
from llmcli.text.thinking import SplitReply, Thinking


@dataclass(frozen=True)
class ChatSetup:
    """How conversations are answered: their format, how the model thinks, and the most tokens of thoughts."""

    form: TemplateFormat
    thinking: Thinking
    think_budget: int | None

    def request(self, loaded: LoadedModel, sampler: Sampler, key: int, job: ChatJob) -> tuple[Request, SplitReply]:
        """Return the request for a reply, and what splits it. Raises LlmcliError if the conversation is too long."""
        rendered = self.form.render(job.messages)
        ids = fit_prompt(loaded, loaded.readable(self.form.encode(rendered)), "error")
        state, chosen = self.thinking.state_after(rendered.text), sampler.copy(job.seed, len(ids))
        if self.think_budget is not None:
            budget = think_budget_of(loaded.tokenizer, self.thinking, self.think_budget, state, len(ids))
            chosen = Sampler([budget, *chosen.filters], job.seed)
        shown = self.thinking.tag_ids(loaded.tokenizer)
        request = Request(key, ids, chosen, job.max_tokens, stop=job.stop, shown=shown)
        return request, SplitReply(self.thinking, state, self.think_budget)


class LocalWriter:
    """Continues the prompts of jobs with a loaded model.

    ``encode`` returns the ids of a prompt and may raise LlmcliError, which fails that job alone. ``settings`` are
    further settings that the texts depend on. ``chat`` is needed for conversations.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        sampler: Sampler,
        encode: Callable[[str], list[int]],
        *,
        rolls: bool,
        settings: Mapping[str, Any],
        chat: ChatSetup | None = None,
    ) -> None:
        self.loaded, self.sampler, self.encode, self.rolls = loaded, sampler, encode, rolls
        self.settings = settings
        self.chat = chat

    def mark(self, job: Job) -> str:
        """The digest of everything that the job's text depends on."""
        filters = [repr(filter) for filter in self.sampler.filters if filter.name != "grammar"]  # it is in settings
        return digest(asdict(job), self.loaded.name, str(self.loaded.model.dtype), filters, dict(self.settings))

    def write(self, jobs: Iterable[Job], size: int) -> Iterator[JobUpdate]:
        """Continue the prompts, ``size`` at a time; an update for each token."""
        running: dict[int, Job] = {}
        failed: deque[JobUpdate] = deque()
        splits: dict[int, SplitReply] = {}

        def requests() -> Iterator[Request]:
            for key, job in enumerate(jobs):
                try:
                    if isinstance(job, ChatJob):
                        assert self.chat is not None
                        request, splits[key] = self.chat.request(self.loaded, self.sampler, key, job)
                    else:
                        request = self._request(key, job)
                except LlmcliError as error:
                    failed.append(JobUpdate(job, 0, error=error))
                    continue
                running[key] = job
                yield request

        for step in generate_batch(self.loaded, requests(), size):
            while failed:
                yield failed.popleft()
            job, split = running[step.request.key], splits.get(step.request.key)
            if split is not None:
                stops = step.step is None or step.step.finish == "stop_token"
                split.add(step.chunk, ended=step.done, counts=not stops)
            yield JobUpdate(job, 1, self._result(job, step, split) if step.done else None)
            if step.done:
                splits.pop(step.request.key, None)
                del running[step.request.key]
        yield from failed

    def _request(self, key: int, job: Job) -> Request:
        ids = self.encode(job.prompt)
        sampler = self.sampler.copy(job.seed, len(ids))
        return Request(key, ids, sampler, job.max_tokens, stop=job.stop, rolls=self.rolls)

    def _result(self, job: Job, step: BatchStep, split: SplitReply | None) -> dict[str, Any]:
        return result(
            job,
            text=step.text.text if split is None else split.answer,
            finish=step.text.finish,
            prompt_tokens=len(step.request.prompt_ids),
            tokens=step.text.tokens,
            mean_logprob=step.mean_logprob,
            mark=self.mark(job),
            valid=step.text.valid,
            thoughts=None if split is None else (split.thoughts, split.thought_tokens),
        )
