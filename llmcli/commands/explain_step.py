"""``llmcli explain-step``: why this token?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands import options
from llmcli.errors import usage_error

if TYPE_CHECKING:
    from llmcli.explain.step import StepReport
    from llmcli.generate.loaded import LoadedModel
    from llmcli.generate.sampling import Sampler
    from llmcli.generate.steps import Step


@click.command()
@options.prompt_options
@click.option("--step", "index", type=click.IntRange(min=0), default=0, show_default=True, help="Which token, from 0.")
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="How many candidates to list.")
@click.option("--temperatures", metavar="LIST", help="Compare temperatures, such as 0,0.5,1,1.5.")
@click.option("--interactive", is_flag=True, help="Choose each token yourself, step by step.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@options.model_options
@options.sampling_options
@options.verbose_option
def explain_step(
    prompt: str | None,
    prompt_file: Path | None,
    parse_special: bool,
    index: int,
    top: int,
    temperatures: str | None,
    interactive: bool,
    as_json: bool,
    model: str | None,
    offline: bool,
    device: str,
    dtype: str,
    threads: int | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    samplers: str,
    seed: int | None,
    verbose: bool,
) -> None:
    """Show how one token was chosen: every candidate's logit, probability, cut, and share of the draw.

    With the options and the seed of a `generate` run, step N is the token that run wrote at N.

    \b
    Examples:
      llmcli explain-step "Once upon a"
      llmcli explain-step "The king was" --seed 7 --step 3 --temperature 1.2
      llmcli explain-step "She opened the" --temperatures 0,0.5,1,2
    """
    text = options.read_prompt(prompt, prompt_file)
    sampling = options.asked_sampling(temperature, top_k, top_p, min_p, samplers)
    warmths = parse_temperatures(temperatures)
    if interactive and (as_json or not (sys.stdin.isatty() and sys.stdout.isatty())):
        raise usage_error("--interactive needs a terminal and excludes --json", "leave it out")
    seed = options.make_seed(seed)
    loaded = options.open_model(model, offline, device, dtype, threads)

    from llmcli.generate.sampling import Sampler
    from llmcli.render import ndjson
    from llmcli.render.step import print_step

    ids = loaded.prompt_ids(text, parse_special=parse_special)
    filters = sampling.filters(loaded.defaults.sampling)
    sampler = Sampler([*loaded.vocabulary_filter(), *filters], seed)
    options.tell_defaults(sampling, loaded)
    shape = {"top": top, "temperatures": warmths}
    if interactive:
        walk(loaded, sampler, ids, shape)
        return
    report = report_of_step(loaded, sampler, ids, index, shape)
    if as_json:
        ndjson.write(ndjson.step(report), sys.stdout)
    else:
        print_step(report, sys.stdout)


def report_of_step(
    loaded: LoadedModel, sampler: Sampler, ids: list[int], index: int, shape: dict[str, Any]
) -> StepReport:
    """The report of the index-th step of the same loop that `generate` runs. Errors: it ends before that."""
    from llmcli.explain.step import step_report
    from llmcli.generate.steps import steps

    context = list(ids)
    for step in steps(loaded.model, ids, sampler=sampler, max_new_tokens=index + 1, stop_ids=loaded.stop_ids):
        if step.index == index:
            return step_report(step, sampler, loaded.tokenizer, prompt_ids=ids, context_ids=context, **shape)
        context.append(step.token)
    raise usage_error(
        f"there is no step {index}: the text ended at step {step.index} ({step.finish})",
        f"ask for a step from 0 to {step.index}",
    )


def walk(loaded: LoadedModel, sampler: Sampler, ids: list[int], shape: dict[str, Any]) -> None:
    """Step by step: show the candidates, append the one that the user picks, and go on until they leave."""
    from llmcli.explain.step import step_report
    from llmcli.generate.steps import steps
    from llmcli.render.step import print_step
    from llmcli.render.tokens import printable

    context = list(ids)
    stepping = steps(loaded.model, ids, sampler=sampler, max_new_tokens=loaded.model.config.max_position_embeddings)
    step: Step | None = next(stepping)
    while step is not None:
        report = step_report(step, sampler, loaded.tokenizer, prompt_ids=ids, context_ids=context, **shape)
        print_step(report, sys.stdout)
        token = pick(report)
        if token is None:
            break
        context.append(token)
        click.echo("\n" + printable(loaded.tokenizer.decode(context), sys.stdout) + "\n")
        try:
            step = stepping.send(token)
        except StopIteration:
            step = None


def pick(report: StepReport) -> int | None:
    """The id of the candidate whose rank is typed, the drawn one for Enter, None to leave."""
    ranks = {row.rank: row.id for row in report.candidates}
    while True:
        answer = click.prompt(
            "rank of the next token (Enter: the drawn one, q: leave)", default="", show_default=False
        ).strip()
        if not answer:
            return report.chosen.id
        if answer.lower() in ("q", "quit"):
            return None
        if answer.isdecimal() and int(answer) in ranks:
            return ranks[int(answer)]
        click.echo(f"{answer!r} is no rank in the table")


def parse_temperatures(text: str | None) -> list[float]:
    """Numbers between commas, each a valid temperature. Errors: anything else."""
    from llmcli.generate.sampling import Temperature

    values = []
    for word in (text or "").split(","):
        if not word.strip():
            continue
        try:
            values.append(float(word))
        except ValueError:
            raise usage_error(f"--temperatures: {word!r} is not a number", "as in 0,0.5,1,1.5") from None
        Temperature(values[-1])
    return values
