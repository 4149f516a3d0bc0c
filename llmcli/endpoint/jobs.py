"""A batch that a server continues."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from llmcli.endpoint.batch import complete_all
from llmcli.endpoint.errors import ServerError
from llmcli.endpoint.server import Request, Server
from llmcli.generation.jobs.prompts import ChatJob, Job
from llmcli.generation.jobs.results import digest, result
from llmcli.generation.jobs.run import JobUpdate


class ServerWriter:
    """Continues the prompts of jobs by requests to a server; ``fields`` are the sampling fields of each request.

    ``thinking`` are more fields for conversations.
    """

    def __init__(self, server: Server, fields: Mapping[str, Any], thinking: Mapping[str, Any] | None = None) -> None:
        self.server, self.fields, self.thinking = server, fields, dict(thinking or {})

    def mark(self, job: Job) -> str:
        """The digest of everything that the job's text depends on."""
        fields = {**self.fields, **self._more(job)}
        return digest(asdict(job), self.server.client.address.base, self.server.model, fields)

    def _more(self, job: Job) -> dict[str, Any]:
        return self.thinking if isinstance(job, ChatJob) else {}

    def write(self, jobs: Iterable[Job], size: int) -> Iterator[JobUpdate]:
        """Continue the prompts with ``size`` requests at a time; an update for each text.

        A prompt that the server rejects fails alone. Raises any other error of the server.
        """
        running: dict[int, Job] = {}

        def requests() -> Iterator[tuple[int, Request]]:
            for key, job in enumerate(jobs):
                running[key] = job
                prompt = job.messages if isinstance(job, ChatJob) else job.prompt
                fields = {**self.fields, **self._more(job), "seed": job.seed}
                yield key, Request(prompt, job.max_tokens, fields, job.stop)

        for key, answer in complete_all(self.server, requests(), size):
            job = running.pop(key)
            if isinstance(answer, ServerError) and answer.affects_only_this_request:
                yield JobUpdate(job, 0, error=answer)
            elif isinstance(answer, Exception):
                raise answer
            else:
                record = result(
                    job,
                    text=answer.text,
                    finish=answer.finish,
                    prompt_tokens=answer.usage.prompt_tokens,
                    tokens=answer.usage.completion_tokens,
                    mean_logprob=None,
                    mark=self.mark(job),
                    thoughts=(answer.thoughts, None),
                )
                yield JobUpdate(job, answer.usage.completion_tokens or 0, record)
