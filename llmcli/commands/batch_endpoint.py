"""``batch --endpoint``: many prompts that a server continues, several at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.commands.options.endpoint import fields_of
from llmcli.commands.shell.interrupt import Interrupt
from llmcli.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, usage_error

if TYPE_CHECKING:
    from llmcli.commands.options.sampling import Sampling
    from llmcli.endpoint.many import Answer
    from llmcli.endpoint.server import Ask, Server
    from llmcli.generation.jobs.files import Job, Results, Usual
    from llmcli.render.progress import BatchProgress


class ServerRun:
    """One run over the file of prompts."""

    def __init__(self, server: Server, sampling: Sampling, results: Results, source: Path, usual: Usual) -> None:
        self.server, self.results, self.source, self.usual = server, results, source, usual
        self.fields = fields_of(sampling, server, None)
        self._jobs: dict[int, Job] = {}  # those under way, in the order of the file

    def write(self, size: int, *, in_order: bool) -> int:
        """Write what is not yet there; the exit code. Errors: the server does not go on."""
        from llmcli.endpoint.many import side_by_side
        from llmcli.generation.batch import InOrder
        from llmcli.render.progress import BatchProgress
        from llmcli.render.terminal import note

        total, order = self.check(), InOrder[dict[str, Any] | None]()
        if self.results.torn:
            note(f"the last line of {self.results.path} was cut short: it is written again", sys.stderr)
        with Interrupt() as interrupt, self.results, BatchProgress(total, len(self.results.done), sys.stderr) as view:
            interrupt.rest()
            try:
                for key, answer in side_by_side(self.server, self.asks(view), size):
                    interrupt.point()
                    record = self.record(key, answer, view)
                    for ready in order.put(key, record, done=True) if in_order else [record]:
                        if ready is not None:
                            self.results.append(ready)
                            view.kept += 1
                    interrupt.rest()
            except KeyboardInterrupt:
                return EXIT_INTERRUPTED
        return EXIT_FAILURE if view.broken else EXIT_OK

    def record(self, key: int, answer: Answer | Exception, view: BatchProgress) -> dict[str, Any] | None:
        """A result, under the names of ``jobs.result``; None of a prompt that the server refuses, which is told."""
        from llmcli.endpoint.failures import ServerError

        job = self._jobs.pop(key)
        if isinstance(answer, ServerError) and answer.of_this_request:
            view.wrong(f"{self.source}:{job.number}", str(answer))
            return None
        if isinstance(answer, Exception):
            raise answer
        view.show(done=True, tokens=answer.usage.written or 0)
        return {
            "id": job.id,
            "text": answer.text,
            "finish": answer.finish,
            "prompt_tokens": answer.usage.prompt,
            "tokens": answer.usage.written,
            "mean_logprob": None,
            "seed": job.seed,
            "mark": self.mark(job),
        }

    def mark(self, job: Job) -> str:
        from llmcli.generation.jobs.files import digest

        return digest(asdict(job), self.server.client.address.base, self.server.model, self.fields)

    def check(self) -> int:
        """How many lines there are. Errors: a result of another prompt, or of other settings."""
        from llmcli.generation.jobs.files import Job, read_jobs

        lines = list(read_jobs(self.source, self.usual))
        marks = {job.id: self.mark(job) for job in lines if isinstance(job, Job)}
        for id, mark in self.results.done.items():
            if marks.get(id) != mark:
                raise usage_error(
                    f"{self.results.path} holds another result for {id!r}: of another prompt, server or settings",
                    "name another file for the results",
                )
        return len(lines)

    def asks(self, view: BatchProgress) -> Iterator[tuple[int, Ask]]:
        """What is left to ask for, as there is room."""
        from llmcli.endpoint.server import Ask
        from llmcli.generation.jobs.files import Broken, read_jobs

        done, key = set(self.results.done), 0
        for job in read_jobs(self.source, self.usual):
            if isinstance(job, Broken):
                view.wrong(f"{self.source}:{job.number}", job.reason)
            elif job.id not in done:
                self._jobs[key] = job
                yield key, Ask(job.prompt, job.max_tokens, {**self.fields, "seed": job.seed}, job.stop)
                key += 1
