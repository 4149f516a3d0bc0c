"""One run over a file of prompts, whether a local model or a server continues them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llmcli.errors import LlmcliError, usage_error
from llmcli.generation.in_order import InOrder
from llmcli.generation.jobs.prompts import InvalidLine, Job
from llmcli.generation.jobs.results import Results


@dataclass(frozen=True)
class JobUpdate:
    """The number of new ``tokens`` of a job and, at its end, its ``result`` or the ``error`` that it failed with."""

    job: Job
    tokens: int
    result: dict[str, Any] | None = None
    error: LlmcliError | None = None

    @property
    def done(self) -> bool:
        return self.result is not None or self.error is not None


class Writer(Protocol):
    """What continues the prompts of a batch."""

    def mark(self, job: Job) -> str:
        """The digest of everything that the job's text depends on."""

    def write(self, jobs: Iterable[Job], size: int) -> Iterator[JobUpdate]:
        """Continue the prompts, ``size`` at a time. Raises errors that concern more than one job."""


class BatchRun:
    """Continues the prompts whose results are missing.

    ``lines`` are those of the file of prompts. With ``in_order`` results are stored in the order of their lines,
    otherwise as soon as they are finished. If several processes share the lines, this one, ``rank``, takes every
    ``processes``-th line.

    Raises LlmcliError if ``results`` has a result with other settings or of another prompt.
    """

    def __init__(
        self,
        writer: Writer,
        lines: Sequence[Job | InvalidLine],
        results: Results,
        *,
        in_order: bool,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.writer, self.results = writer, results
        self._check({job.id: job for job in lines if isinstance(job, Job)})
        own = [line for line in lines if line.number % processes == rank]
        self.total = len(own)
        self.invalid = [line for line in own if isinstance(line, InvalidLine)]
        self._jobs = [job for job in own if isinstance(job, Job) and job.id not in results.done]
        self.done = self.total - len(self.invalid) - len(self._jobs)
        self._keys = {job.number: key for key, job in enumerate(self._jobs)}
        self._order = InOrder[dict[str, Any] | None]() if in_order else None

    def updates(self, size: int) -> Iterator[JobUpdate]:
        """Continue the prompts, ``size`` at a time. Pass each update to ``store``."""
        return self.writer.write(self._jobs, size)

    def store(self, update: JobUpdate) -> int:
        """Append the results that an update makes ready to the file; returns their number."""
        if not update.done:
            return 0
        ready = [update.result]
        if self._order is not None:
            ready = self._order.put(self._keys[update.job.number], update.result, done=True)
        results = [result for result in ready if result is not None]
        for result in results:
            self.results.append(result)
        return len(results)

    def _check(self, jobs: dict[str | int, Job]) -> None:
        for id, mark in self.results.done.items():
            if id not in jobs or self.writer.mark(jobs[id]) != mark:
                raise usage_error(
                    f"{self.results.path} has a result for {id!r} from another prompt, model or settings",
                    "name another file for the results",
                )
