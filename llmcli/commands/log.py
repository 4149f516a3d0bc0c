"""``llmcli log``: the texts that --log kept."""

from __future__ import annotations

import sys
from dataclasses import replace

import click

from llmcli import generation, render
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.run_log import Setup, fingerprint_of, run_log
from llmcli.commands.shell.command import Command
from llmcli.commands.shell.interrupt import Interrupt
from llmcli.errors import EXIT_FAILURE, EXIT_INTERRUPTED, LlmcliError, usage_error
from llmcli.files.ndjson import write_line
from llmcli.files.run_log import Run
from llmcli.render import json_forms

ALL = "all"


@click.command(cls=Command)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="List the latest N runs.")
@click.option("--search", metavar="TEXT", help="List runs with this text in the prompt, the text or the model's name.")
@click.option("--show", type=click.IntRange(min=1), metavar="RUN", help="Show a run in full.")
@click.option("--repeat", type=click.IntRange(min=1), metavar="RUN", help="Repeat a run with the same draws.")
@click.option("--any-model", is_flag=True, help="With --repeat: also if the model has changed since the run.")
@click.option("--delete", multiple=True, metavar="RUN", help="Delete a run, or all. Repeatable.")
@click.option("--yes", "-y", is_flag=True, help="Delete all runs without asking for confirmation.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per run.")
@verbose_option
def log(
    limit: int,
    search: str | None,
    show: int | None,
    repeat: int | None,
    any_model: bool,
    delete: tuple[str, ...],
    yes: bool,
    as_json: bool,
) -> None:
    """List, search, show, repeat and delete the runs that `generate --log` and `chat --log` kept.

    --log keeps the prompt, the options, the seed, a fingerprint of the model and the text. To keep every run, put
    log = true in the config file. --repeat generates the text again and says whether it is the same; if it is not, the
    exit code is 1.

    \b
    Examples:
      llmcli log
      llmcli log --search "once upon"
      llmcli log --show 3
      llmcli log --repeat 3
      llmcli log --delete 3 --delete 4
    """
    actions = {"--search": search, "--show": show, "--repeat": repeat, "--delete": delete or None}
    given = [option for option, value in actions.items() if value is not None]
    if len(given) > 1:
        raise usage_error(f"{' and '.join(given)} cannot be combined", "give one of them")
    if any_model and repeat is None:
        raise usage_error("--any-model has no effect without --repeat", "name the run to repeat")
    if as_json and (repeat or delete):
        raise usage_error(f"--json does not work with {given[0]}", "omit it")
    if repeat is not None:
        repeat_run(run_log().get(repeat), any_model=any_model)
    elif delete:
        delete_runs(delete, yes=yes)
    else:
        runs = run_log().latest(limit, search or "") if show is None else [run_log().get(show)]
        show_runs(runs, as_json=as_json, whole=show is not None, searched=search is not None)


def show_runs(runs: list[Run], *, as_json: bool, whole: bool, searched: bool) -> None:
    """Print runs as a table, one of them in full, or as JSON."""
    if not runs:
        none = "no run in the log has this text" if searched else "no runs yet: add --log to generate or chat"
        render.note(none, sys.stderr)
    for run in runs:
        if as_json:
            write_line(json_forms.logged_run(run), sys.stdout)
        elif whole:
            render.print_run(run, sys.stdout)
    if runs and not as_json and not whole:
        render.print_runs(runs, sys.stdout)


def delete_runs(names: tuple[str, ...], *, yes: bool) -> None:
    """Delete runs from the log, all of them after confirmation. Raises LlmcliError for a run that is not in it."""
    runs = run_log()
    if ALL in names:
        if not yes and (sys.stdin is None or not sys.stdin.isatty()):
            raise usage_error(
                "cannot ask for confirmation: stdin is not a terminal", "to delete without asking, add --yes"
            )
        if not yes and not click.confirm("Delete all runs?", err=True):
            render.note("nothing was deleted", sys.stderr)
            return
        count = runs.delete(None)
    else:
        for name in names:
            if not name.isdecimal():
                raise usage_error(f"--delete takes the number of a run, or {ALL}, not {name!r}", "see llmcli log")
        count = runs.delete([runs.get(int(name)).id for name in names])
    render.note(f"deleted {render.counted(count, 'run')}", sys.stderr)


def repeat_run(run: Run, *, any_model: bool) -> None:
    """Generate the text of a run again and print it. Exits with 1 if it differs from the text in the log."""
    if "obstacle" in run.replay:
        hint = f"llmcli log --show {run.id} has its prompt and options"
        raise LlmcliError(f"run {run.id} cannot be repeated: {run.replay['obstacle']}", hint)
    setup = Setup.of_json(run.replay["setup"])
    loaded = setup.changes.apply(setup.choice.open())
    if fingerprint_of(loaded) != run.fingerprint and not any_model:
        raise LlmcliError(f"{run.model} is not the model of run {run.id}: its weights have changed", kind="other-model")
    loaded = setup.applied(loaded)
    ids = loaded.readable(run.replay["prompt_ids"])
    sampling = replace(setup.sampling, seed=run.seed)
    generated = generation.Generation(
        loaded,
        ids,
        sampler=sampling.sampler(loaded, setup.grammar.filter(loaded, len(ids))),
        max_new_tokens=setup.max_tokens if run.tokens else 0,
        stop=setup.stop,
        rolls=setup.rolls,
    )
    _write(generated, run.tokens if run.finish == "interrupted" else None)
    if generated.finish == "interrupted" and generated.tokens < run.tokens:
        sys.exit(EXIT_INTERRUPTED)
    same = generated.text == run.text
    render.note(_verdict(run, generated.text), sys.stderr)
    sys.exit(0 if same else EXIT_FAILURE)


def _write(generated: generation.Generation, last: int | None) -> None:
    """Print a text as it is generated, up to ``last`` tokens, as if Ctrl-C had been pressed after those."""
    writer = render.TextWriter(sys.stdout, by_probability=False)
    with Interrupt() as interrupt:
        try:
            for step, text in generated:
                writer.write(text, step.choice.prob)
                interrupt.point()
                if generated.tokens == last:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            writer.write(generated.interrupt())
    writer.end_line()


def _verdict(run: Run, text: str) -> str:
    """Whether the text is that of the run, and if not, where it differs."""
    if text == run.text:
        return f"the text is the same as that of run {run.id}"
    pairs = enumerate(zip(text, run.text, strict=False))
    place = next((n for n, (a, b) in pairs if a != b), min(len(text), len(run.text)))
    return f"the text differs from that of run {run.id} from character {place} on; see llmcli log --show {run.id}"
