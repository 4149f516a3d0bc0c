"""``llmcli batch``: continue many prompts, from a file to a file."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from llmcli import generation, render, text
from llmcli.commands.options.choices import ChoiceOptions, choice_options
from llmcli.commands.options.common import MOST_IN_BATCH, Choice, verbose_option
from llmcli.commands.options.distributed import open_copies
from llmcli.commands.options.endpoint import Endpoint, endpoint_options, fields_of
from llmcli.commands.options.grammar import GrammarChoice, check_valid, grammar_options_without_choices
from llmcli.commands.options.length import Length, fit, length_options
from llmcli.commands.options.model import ModelChoice, model_options
from llmcli.commands.options.sampling import Sampling, sampling_bundle
from llmcli.commands.options.template import Template, template_of, template_options
from llmcli.commands.options.thinking import Think, thinking_options
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
@grammar_options_without_choices
@choice_options("Score these answers; do not generate.")
@template_options
@thinking_options
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
    asked: ChoiceOptions,
    template: Template,
    think: Think,
) -> None:
    """Continue many prompts, from a file to a file.

    Each line of IN.jsonl is a JSON object with a "prompt" and, optionally, an
    "id", "seed", "max_tokens" and "stop". OUT.jsonl gets one result per prompt
    with its "id", "text", "finish" and more. If a run is stopped or even
    killed, the same command resumes it. Invalid lines are reported and skipped.

    A line may have "messages" instead of a "prompt", as a saved chat has them. They are formatted with the model's
    chat template, and the result is the model's reply, with any thoughts before it as "reasoning_content".

    The seed of a prompt is --seed (default: 0) plus the number of its line, counted from 0.

    With --choices, or if the lines have "choices" of their own, nothing is generated: each result has the log
    probability of every choice and the most probable one. Where a line has the right "answer", the text of a choice
    or its index from 0, the right answers are counted: a multiple-choice evaluation.

    \b
    Examples:
      llmcli batch prompts.jsonl texts.jsonl
      llmcli batch prompts.jsonl texts.jsonl --batch-size 32 -n 100
      llmcli batch questions.jsonl answers.jsonl --choices yes,no
    """
    jobs.check_name(target)
    grammar.exclude_all(length)
    with suppress(OSError):  # either file may not exist
        if source.samefile(target):
            raise usage_error(f"{source} is both the prompts and the results", "name another file for the results")
    results = jobs.Results(target)
    lines = read_lines(source, sampling, length, asked)
    questions = asked.texts is not None or any(isinstance(line, jobs.QuestionJob) for line in lines)
    if questions:
        grammar.exclude("choices", "choices are scored, and nothing is generated")
    chats = any(isinstance(line, jobs.ChatJob) for line in lines)
    if not chats and (think.given or (template.given and not endpoint.given)):  # a server takes no template
        raise usage_error("no line has messages, which the options for chat templates and thinking need", "omit them")
    in_order = order == "input"
    numbers = {line.id: line.number for line in lines if isinstance(line, jobs.Job)} if in_order else None
    info = torchrun_rank()

    if jobs.parts_of(target) and (info.size == 1 or endpoint.given):  # left by several processes
        jobs.merge(target, numbers)
        results = jobs.Results(target)

    def open_writer(loaded: generation.LoadedModel) -> tuple[jobs.Writer, list[jobs.Job | jobs.InvalidLine]]:
        """The writer that uses a model, and the lines with the model's own limits."""
        if questions:
            return choice_writer(loaded, asked, found), lines
        limits = grammar.limits_of(length, loaded)
        chat = None if found is None else chat_setup(loaded, found, think)
        return local_writer(loaded, sampling, grammar, limits, chat), read_lines(source, sampling, limits, asked)

    if endpoint.given:
        from llmcli.endpoint.jobs import ServerWriter
        from llmcli.endpoint.server_kinds import thinking_fields

        if questions and asked.texts is None:  # open refuses --choices
            raise usage_error("choices are scored on this machine", "omit --endpoint")
        server = endpoint.open()
        thinking = thinking_fields(server.kind, think.on, think.budget)
        server_writer = ServerWriter(server, fields_of(sampling, server, None), thinking)
        run = jobs.BatchRun(server_writer, lines, results, in_order=in_order)
        sys.exit(write_results(run, source, batch_size, waits=True))
    if questions:
        found = asked.template(choice)
    else:
        found = template_of(choice, "give it a template with --template", template) if chats else None
    if info.size > 1:
        loaded, group = open_copies(choice, info)
        writer, lines = open_writer(loaded)
        shared = jobs.SharedResults(group, target, numbers)
        run = jobs.BatchRun(writer, lines, shared.part, in_order=in_order, rank=info.rank, processes=info.size)
        code = shared.finish(write_results(run, source, batch_size, rank=info.rank))
        if info.rank == 0 and code != EXIT_INTERRUPTED:
            conclude(target, questions=questions)
        sys.exit(code)

    writer, lines = open_writer(choice.open())
    code = write_results(jobs.BatchRun(writer, lines, results, in_order=in_order), source, batch_size)
    if numbers is not None and list(results.done) != sorted(results.done, key=numbers.__getitem__):
        jobs.merge(target, numbers)
    if code != EXIT_INTERRUPTED:
        conclude(target, questions=questions)
    sys.exit(code)


def read_lines(
    source: Path, sampling: Sampling, length: Length, asked: ChoiceOptions
) -> list[jobs.Job | jobs.InvalidLine]:
    """The prompts, with the options for those that have no settings of their own."""
    defaults = jobs.JobDefaults(sampling.seed or 0, length.max_tokens, length.stop, asked.texts)
    return jobs.questions_only(list(jobs.read_jobs(source, defaults)))


def local_writer(
    loaded: generation.LoadedModel,
    sampling: Sampling,
    grammar: GrammarChoice,
    length: Length,
    chat: jobs.ChatSetup | None,
) -> jobs.LocalWriter:
    """Return the writer that continues the prompts, or with ``chat`` replies, with the model on this machine."""

    def encode(prompt: str) -> list[int]:
        return fit(loaded, prompt, length.overflow)

    sampler = sampling.sampler(loaded, grammar.filter(loaded, 0), length.adopted)
    settings: dict[str, Any] = {"overflow": length.overflow, "rules": grammar.rules}
    if chat is not None:
        loaded = generation.for_chat(loaded, chat.form, chat.thinking)
        settings["chat"] = [chat.form.template.source, chat.form.template.values, chat.think_budget]
    return jobs.LocalWriter(loaded, sampler, encode, rolls=length.overflow == "shift", settings=settings, chat=chat)


def chat_setup(loaded: generation.LoadedModel, template: text.ChatTemplate, think: Think) -> jobs.ChatSetup:
    """Return how conversations are answered. Raises LlmcliError if the model cannot think as it should."""
    thinking = text.thinking_of(template, loaded.tokenizer)
    think.check(loaded.name, thinking)
    form = text.TemplateFormat(think.switched(template, thinking), loaded.tokenizer)
    return jobs.ChatSetup(form, thinking, think.budget)


def choice_writer(
    loaded: generation.LoadedModel, asked: ChoiceOptions, template: text.ChatTemplate | None
) -> jobs.ChoiceWriter:
    """Return the writer that scores the choices with the model on this machine."""
    form = None if template is None else text.TemplateFormat(template, loaded.tokenizer)

    def ask(job: jobs.QuestionJob, key: int) -> generation.Question:
        prompt = asked.prompt(job.prompt)
        return generation.ask(loaded, prompt, job.choices, key=key, delimiter=asked.delimiter, form=form)

    settings = {"delimiter": asked.delimiter, "chat": asked.chat, "system": asked.system_prompt}
    return jobs.ChoiceWriter(loaded, ask, end=asked.end, settings=settings)


def conclude(target: Path, *, questions: bool) -> None:
    """Print how many questions were answered right. Raises LlmcliError if a text does not fit its grammar."""
    if questions:
        found = jobs.accuracies(target)
        if found is not None:
            render.print_accuracy(*found, sys.stdout)
        return
    check_valid(jobs.Results(target).ends)


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
