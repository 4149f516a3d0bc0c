"""``llmcli batch``: many prompts, from a file to a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmcli.commands.batch_endpoint import ServerRun
from llmcli.commands.batch_share import Share
from llmcli.commands.options.common import Choice, verbose_option
from llmcli.commands.options.endpoint import Endpoint, endpoint_options
from llmcli.commands.options.grammar import GrammarChoice, check_valid, grammar_options
from llmcli.commands.options.length import Length, fit, length_options
from llmcli.commands.options.model import ModelChoice, model_options
from llmcli.commands.options.sampling import Sampling, sampling_options
from llmcli.commands.shell.command import Command
from llmcli.commands.shell.interrupt import Interrupt
from llmcli.commands.shell.torchrun import World, torchrun
from llmcli.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, LlmcliError, usage_error

if TYPE_CHECKING:
    from llmcli.generation.batch import Task
    from llmcli.generation.jobs.files import Broken, Job, Results, Usual
    from llmcli.generation.loaded import LoadedModel
    from llmcli.generation.sampling import Sampler
    from llmcli.render.progress import BatchProgress


@click.command(cls=Command, together="alike")
@click.argument("source", metavar="IN.jsonl", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT.jsonl", type=click.Path(path_type=Path))
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Texts side by side.")
@click.option(
    "--order",
    type=Choice(["input", "finished"]),
    default="input",
    show_default=True,
    help="Write results in the order of the prompts, or each when it is finished.",
)
@length_options(least=1)
@model_options
@endpoint_options
@sampling_options
@grammar_options
@verbose_option
def batch(
    source: Path,
    target: Path,
    batch_size: int,
    order: str,
    length: Length,
    choice: ModelChoice,
    endpoint: Endpoint,
    sampling: Sampling,
    grammar: GrammarChoice,
    verbose: bool,
) -> None:
    """Continue many prompts, side by side, from a file to a file.

    IN.jsonl has a JSON object a line, with a "prompt" and, if wanted, "id",
    "seed", "max_tokens" and "stop". OUT.jsonl gets one for each: "id", "text",
    "finish" and more. A run that was stopped, even killed, goes on where it was
    when the same command is given again. A line that cannot be used is told and
    left out.

    Each prompt has draws of its own: its seed is --seed (0 if not given) plus its line, the first being 0.

    \b
    Examples:
      llmcli batch prompts.jsonl texts.jsonl
      llmcli batch prompts.jsonl texts.jsonl --batch-size 32 -n 100
    """
    from llmcli.generation.jobs.files import Results, Usual
    from llmcli.generation.jobs.parts import check_name, merge, parts_of

    check_name(target)
    grammar.exclude_all(length)
    with suppress(OSError):  # of which either may not be there
        if source.samefile(target):
            raise usage_error(f"{source} is both the prompts and the results", "name another file for the results")
    usual = Usual(sampling.seed or 0, length.max_tokens, length.stop)
    results, places = Results(target), places_of(source, usual)
    wanted = places if order == "input" else None
    world = torchrun()
    if world.size > 1 and not endpoint.given:
        share = Share(world, target, wanted)
        loaded = share.open(choice)
        run = Run(loaded, sampling, grammar, length, share.results(), source, usual, world)
        code = share.end(run.write(batch_size, in_order=order == "input"))
        if world.rank == 0 and code != EXIT_INTERRUPTED:
            check_valid(Results(target).ends)
        sys.exit(code)
    if parts_of(target):  # which several processes left
        merge(target, wanted)
        results = Results(target)
    if endpoint.given:
        there = ServerRun(endpoint.open(), sampling, results, source, usual)
        sys.exit(there.write(batch_size, in_order=order == "input"))
    run = Run(choice.open(), sampling, grammar, length, results, source, usual, world)
    code = run.write(batch_size, in_order=order == "input")
    if wanted is not None and list(results.done) != sorted(results.done, key=wanted.__getitem__):
        merge(target, wanted)
    if code != EXIT_INTERRUPTED:
        check_valid(results.ends)
    sys.exit(code)


def places_of(source: Path, usual: Usual) -> dict[str | int, int]:
    """The line of each prompt, by its id."""
    from llmcli.generation.jobs.files import Job, read_jobs

    return {job.id: job.number for job in read_jobs(source, usual) if isinstance(job, Job)}


class Run:
    """One run over the file of prompts, or over a process's share of it."""

    def __init__(
        self,
        loaded: LoadedModel,
        sampling: Sampling,
        grammar: GrammarChoice,
        length: Length,
        results: Results,
        source: Path,
        usual: Usual,
        world: World,
    ) -> None:
        self.loaded, self.length, self.results, self.source = loaded, length, results, source
        self.usual, self.world = usual, world
        self.sampler: Sampler = sampling.sampler(loaded, grammar.filter(loaded, 0))
        self.others = {"overflow": length.overflow, "rules": grammar.rules}
        self._jobs: dict[int, tuple[Job, str]] = {}  # those in the batch, by the key of their task

    def jobs(self) -> Iterator[Job | Broken]:
        """Of the file's lines those that this process is to write."""
        from llmcli.generation.jobs.files import read_jobs

        for job in read_jobs(self.source, self.usual):
            if job.number % self.world.size == self.world.rank:
                yield job

    def write(self, size: int, *, in_order: bool) -> int:
        """Write what is not yet there; the exit code."""
        from llmcli.generation.batch import InOrder, write_many
        from llmcli.generation.jobs.files import result
        from llmcli.render.terminal import note

        total, done = self.check()
        order = InOrder[dict[str, object]]()
        if self.results.torn:
            note(f"the last line of {self.results.path} was cut short: it is written again", sys.stderr)
        with Interrupt() as interrupt, self.results, self.view(total, done) as view:
            try:
                for written in write_many(self.loaded, self.tasks(view), size):
                    view.show(done=written.done)
                    if written.done:
                        key = written.task.key
                        record = result(self._jobs[key][0], written, self._jobs.pop(key)[1])
                        for ready in order.put(key, record, done=True) if in_order else [record]:
                            self.results.append(ready)
                            view.kept += 1
                    interrupt.point()
            except KeyboardInterrupt:
                return EXIT_INTERRUPTED
        return EXIT_FAILURE if view.broken else EXIT_OK

    def mark(self, job: Job) -> str:
        from llmcli.generation.jobs.files import mark

        return mark(job, self.loaded, self.sampler, self.others)

    def view(self, total: int, done: int) -> BatchProgress:
        from llmcli.render.progress import BatchProgress

        return BatchProgress(total, done, sys.stderr, self.world.rank if self.world.size > 1 else None)

    def check(self) -> tuple[int, int]:
        """How many lines there are to do, and how many of them are done.

        Errors: a result of another prompt, or of other settings.
        """
        from llmcli.generation.jobs.files import Job, read_jobs

        jobs = {job.id: job for job in read_jobs(self.source, self.usual) if isinstance(job, Job)}
        for id, mark in self.results.done.items():
            if id not in jobs or self.mark(jobs[id]) != mark:
                raise usage_error(
                    f"{self.results.path} holds another result for {id!r}: of another prompt, model or settings",
                    "name another file for the results",
                )
        own = list(self.jobs())
        return len(own), sum(1 for job in own if isinstance(job, Job) and job.id in self.results.done)

    def tasks(self, view: BatchProgress) -> Iterator[Task]:
        """What is left to write, as it is asked for."""
        from llmcli.generation.batch import Task
        from llmcli.generation.jobs.files import Broken

        key = 0
        for job in self.jobs():
            if isinstance(job, Broken):
                view.wrong(f"{self.source}:{job.number}", job.reason)
                continue
            if job.id in self.results.done:
                continue
            try:
                ids = fit(self.loaded, self.loaded.prompt_ids(job.prompt), self.length.overflow)
            except LlmcliError as error:
                view.wrong(f"{self.source}:{job.number}", str(error))
                continue
            self._jobs[key] = job, self.mark(job)
            limits = {**self.length.limits, "max_new_tokens": job.max_tokens, "stop": job.stop}
            yield Task(key, ids, self.sampler.copy(job.seed, len(ids)), **limits)
            key += 1
