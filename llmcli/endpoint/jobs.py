"""A batch that a server continues."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from llmcli.endpoint.failures import ServerError
from llmcli.endpoint.many import side_by_side
from llmcli.endpoint.server import Ask, Server
from llmcli.generation.jobs.prompts import Job
from llmcli.generation.jobs.results import digest, result
from llmcli.generation.jobs.run import JobUpdate


class ServerWriter:
    """Continues the prompts of jobs by requests to a server; ``fields`` are the sampling fields of each request."""

    def __init__(self, server: Server, fields: Mapping[str, Any]) -> None:
        self.server, self.fields = server, fields

    def mark(self, job: Job) -> str:
        """The digest of everything that the job's text depends on."""
        return digest(asdict(job), self.server.client.address.base, self.server.model, dict(self.fields))

    def write(self, jobs: Iterable[Job], size: int) -> Iterator[JobUpdate]:
        """Continue the prompts with ``size`` requests at a time; an update for each text.

        A prompt that the server rejects fails alone. Raises any other error of the server.
        """
        running: dict[int, Job] = {}

        def requests() -> Iterator[tuple[int, Ask]]:
            for key, job in enumerate(jobs):
                running[key] = job
                yield key, Ask(job.prompt, job.max_tokens, {**self.fields, "seed": job.seed}, job.stop)

        for key, answer in side_by_side(self.server, requests(), size):
            job = running.pop(key)
            if isinstance(answer, ServerError) and answer.of_this_request:
                yield JobUpdate(job, 0, error=answer)
            elif isinstance(answer, Exception):
                raise answer
            else:
                record = result(
                    job,
                    text=answer.text,
                    finish=answer.finish,
                    prompt_tokens=answer.usage.prompt,
                    tokens=answer.usage.written,
                    mean_logprob=None,
                    mark=self.mark(job),
                )
                yield JobUpdate(job, answer.usage.written or 0, record)
