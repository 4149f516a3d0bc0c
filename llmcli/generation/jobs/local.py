"""A batch that the model on this machine continues."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.generation.batch import BatchStep, Request, generate_batch
from llmcli.generation.jobs.prompts import Job
from llmcli.generation.jobs.results import digest, result
from llmcli.generation.jobs.run import JobUpdate
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler


class LocalWriter:
    """Continues the prompts of jobs with a loaded model.

    ``encode`` returns the ids of a prompt and may raise LlmcliError, which fails that job alone. ``settings`` are
    further settings that the texts depend on.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        sampler: Sampler,
        encode: Callable[[str], list[int]],
        *,
        rolls: bool,
        settings: Mapping[str, Any],
    ) -> None:
        self.loaded, self.sampler, self.encode, self.rolls = loaded, sampler, encode, rolls
        self.settings = settings

    def mark(self, job: Job) -> str:
        """The digest of everything that the job's text depends on."""
        filters = [repr(filter) for filter in self.sampler.filters if filter.name != "grammar"]  # it is in settings
        return digest(asdict(job), self.loaded.name, str(self.loaded.model.dtype), filters, dict(self.settings))

    def write(self, jobs: Iterable[Job], size: int) -> Iterator[JobUpdate]:
        """Continue the prompts, ``size`` at a time; an update for each token."""
        running: dict[int, Job] = {}
        failed: deque[JobUpdate] = deque()

        def requests() -> Iterator[Request]:
            for key, job in enumerate(jobs):
                try:
                    ids = self.encode(job.prompt)
                except LlmcliError as error:
                    failed.append(JobUpdate(job, 0, error=error))
                    continue
                running[key] = job
                sampler = self.sampler.copy(job.seed, len(ids))
                yield Request(key, ids, sampler, job.max_tokens, stop=job.stop, rolls=self.rolls)

        for step in generate_batch(self.loaded, requests(), size):
            while failed:
                yield failed.popleft()
            job = running[step.request.key]
            yield JobUpdate(job, 1, self._result(job, step) if step.done else None)
            if step.done:
                del running[step.request.key]
        yield from failed

    def _result(self, job: Job, step: BatchStep) -> dict[str, Any]:
        return result(
            job,
            text=step.text.text,
            finish=step.text.finish,
            prompt_tokens=len(step.request.prompt_ids),
            tokens=step.text.tokens,
            mean_logprob=step.mean_logprob,
            mark=self.mark(job),
            valid=step.text.valid,
        )
