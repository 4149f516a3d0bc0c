"""``llmcli batch``: continue many prompts, from a file to a file."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import click

from llmcli import generation, render
from llmcli.commands.options.common import MOST_IN_BATCH, Choice, verbose_option
from llmcli.commands.options.distributed import open_copies
from llmcli.commands.options.endpoint import Endpoint, endpoint_options, fields_of
from llmcli.commands.options.grammar import GrammarChoice, check_valid, grammar_options
from llmcli.commands.options.length import Length, fit, length_options
from llmcli.commands.options.model import ModelChoice, model_options
from llmcli.commands.options.sampling import Sampling, sampling_bundle
from llmcli.commands.shell.command import Command
from llmcli.commands.shell.hints import describe
from llmcli.commands.shell.interrupt import Interrupt
from llmcli.commands.shell.torchrun import torchrun_rank
from llmcli.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, usage_error
from llmcli.generation import jobs


@click.command(cls=Command, together="all")
@click.argument("source", metavar="IN.jsonl", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT.jsonl", type=click.Path(path_type=Path))
@click.option(
    "--batch-size",
    type=click.IntRange(1, MOST_IN_BATCH),
    default=16,
    show_default=True,
    help="Generate N texts in parallel.",
)
@click.option(
    "--order",
    type=Choice(["input", "finished"]),
    default="input",
    show_default=True,
    help="Write results in the order of the prompts, or each as soon as it is finished.",
)
@length_options(least=1)
@model_options
@endpoint_options
@sampling_bundle(default_seed="0")
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
) -> None:
    """Continue many prompts, from a file to a file.

    Each line of IN.jsonl is a JSON object with a "prompt" and, optionally, an
    "id", "seed", "max_tokens" and "stop". OUT.jsonl gets one result per prompt
    with its "id", "text", "finish" and more. If a run is stopped or even
    killed, the same command resumes it. Invalid lines are reported and skipped.

    The seed of a prompt is --seed (default: 0) plus the number of its line, counted from 0.

    \b
    Examples:
      llmcli batch prompts.jsonl texts.jsonl
      llmcli batch prompts.jsonl texts.jsonl --batch-size 32 -n 100
    """
    jobs.check_name(target)
    grammar.exclude_all(length)
    with suppress(OSError):  # either file may not exist
        if source.samefile(target):
            raise usage_error(f"{source} is both the prompts and the results", "name another file for the results")
    results = jobs.Results(target)
    lines = read_lines(source, sampling, length)
    in_order = order == "input"
    numbers = {line.id: line.number for line in lines if isinstance(line, jobs.Job)} if in_order else None
    info = torchrun_rank()

    if info.size > 1 and not endpoint.given:
        loaded, group = open_copies(choice, info)
        length = grammar.limits_of(length, loaded)
        lines = read_lines(source, sampling, length)
        shared = jobs.SharedResults(group, target, numbers)
        writer = local_writer(loaded, sampling, grammar, length)
        run = jobs.BatchRun(writer, lines, shared.part, in_order=in_order, rank=info.rank, processes=info.size)
        code = shared.finish(write_results(run, source, batch_size, rank=info.rank))
        if info.rank == 0 and code != EXIT_INTERRUPTED:
            check_valid(jobs.Results(target).ends)
        sys.exit(code)

    if jobs.parts_of(target):  # left by several processes
        jobs.merge(target, numbers)
        results = jobs.Results(target)
    if endpoint.given:
        from llmcli.endpoint.jobs import ServerWriter

        server = endpoint.open()
        run = jobs.BatchRun(ServerWriter(server, fields_of(sampling, server, None)), lines, results, in_order=in_order)
        sys.exit(write_results(run, source, batch_size, waits=True))
    loaded = choice.open()
    length = grammar.limits_of(length, loaded)
    lines = read_lines(source, sampling, length)
    run = jobs.BatchRun(local_writer(loaded, sampling, grammar, length), lines, results, in_order=in_order)
    code = write_results(run, source, batch_size)
    if numbers is not None and list(results.done) != sorted(results.done, key=numbers.__getitem__):
        jobs.merge(target, numbers)
    if code != EXIT_INTERRUPTED:
        check_valid(results.ends)
    sys.exit(code)


def read_lines(source: Path, sampling: Sampling, length: Length) -> list[jobs.Job | jobs.InvalidLine]:
    """The prompts, with the options for those that have no settings of their own."""
    return list(jobs.read_jobs(source, jobs.JobDefaults(sampling.seed or 0, length.max_tokens, length.stop)))


def local_writer(
    loaded: generation.LoadedModel, sampling: Sampling, grammar: GrammarChoice, length: Length
) -> jobs.LocalWriter:
    """Return the writer that continues the prompts with the model on this machine."""

    def encode(prompt: str) -> list[int]:
        return fit(loaded, prompt, length.overflow)

    sampler = sampling.sampler(loaded, grammar.filter(loaded, 0), length.adopted)
    settings = {"overflow": length.overflow, "rules": grammar.rules}
    return jobs.LocalWriter(loaded, sampler, encode, rolls=length.overflow == "shift", settings=settings)


def write_results(run: jobs.BatchRun, source: Path, size: int, *, rank: int | None = None, waits: bool = False) -> int:
    """Continue the prompts, show the progress, and return the exit code.

    If the writer ``waits`` for a server, Ctrl-C interrupts the wait; otherwise it takes effect between two tokens.
    """
    if run.results.torn:
        render.note(f"the last line of {run.results.path} is incomplete and will be generated again", sys.stderr)
    progress = render.BatchProgress(run.total, run.done, sys.stderr, rank)
    with Interrupt() as interrupt, run.results, progress as view:
        for line in run.invalid:
            view.wrong(f"{source}:{line.number}", line.reason)
        try:
            for update in run.updates(size):
                interrupt.point()
                if update.error is not None:
                    view.wrong(f"{source}:{update.job.number}", describe(update.error))
                else:
                    view.show(done=update.done, tokens=update.tokens)
                view.kept += run.store(update)
                if waits:
                    interrupt.rest()
                else:
                    interrupt.point()
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
    return EXIT_FAILURE if view.broken else EXIT_OK
