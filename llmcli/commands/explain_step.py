"""``llmcli explain-step``: why this token?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from llmcli import explain
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.distributed import SplitChoice, split_options
from llmcli.commands.options.endpoint import Endpoint, endpoint_options, fields_of
from llmcli.commands.options.grammar import GrammarChoice, grammar_options
from llmcli.commands.options.length import fit, overflow_option
from llmcli.commands.options.output import Form, form_options
from llmcli.commands.options.prompt import Prompt, prompt_options
from llmcli.commands.options.sampling import Sampling, sampling_options
from llmcli.commands.shell.command import Command
from llmcli.commands.shell.help import heading
from llmcli.errors import usage_error

if TYPE_CHECKING:
    from llmcli.endpoint.server import Server
    from llmcli.explain.sampling_step import StepReport
    from llmcli.generation.loaded import LoadedModel
    from llmcli.generation.overflow import Overflow
    from llmcli.generation.sampling import Sampler
    from llmcli.generation.steps import Step


@click.command(cls=Command, together="share")
@prompt_options()
@heading("What is shown")
@click.option("--step", "index", type=click.IntRange(min=0), default=0, show_default=True, help="Which token, from 0.")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many candidates to list, of all and of those left.",
)
@click.option("--temperatures", metavar="LIST", help="Compare temperatures, such as 0,0.5,1,1.5.")
@overflow_option
@click.option("--interactive", is_flag=True, help="Choose each token yourself, step by step.")
@form_options
@split_options
@endpoint_options
@sampling_options
@grammar_options
@verbose_option
def explain_step(
    prompt: Prompt,
    index: int,
    top: int,
    temperatures: str | None,
    overflow: Overflow,
    interactive: bool,
    form: Form,
    choice: SplitChoice,
    endpoint: Endpoint,
    sampling: Sampling,
    grammar: GrammarChoice,
    verbose: bool,
) -> None:
    """Show how one token was chosen: every candidate's logit, probability, cut, and share of the draw.

    With the options and the seed of a `generate` run, step N is the token that run wrote at N.

    \b
    Examples:
      llmcli explain-step "Once upon a"
      llmcli explain-step "The king was" --seed 7 --step 3 --temperature 1.2
      llmcli explain-step "She opened the" --temperatures 0,0.5,1,2
      llmcli explain-step "The king was very" --choices "old,sad,tired"
    """
    if overflow == "shift":
        grammar.exclude("--context-overflow shift", "the grammar must see the whole text")
    text = prompt.read()
    warmths = parse_temperatures(temperatures)
    if interactive and (form.as_json or form.picture or not (sys.stdin.isatty() and sys.stdout.isatty())):
        raise usage_error("--interactive needs a terminal and excludes --json and --save", "leave it out")
    if endpoint.given:
        explain_there(endpoint.open(), text, sampling, index, top, form)
        return
    loaded = choice.open()

    from llmcli.render import json_forms
    from llmcli.render.step import print_step

    ids = fit(loaded, loaded.prompt_ids(text, parse_special=prompt.parse_special), overflow)
    sampler = sampling.sampler(loaded, grammar.filter(loaded, len(ids)))
    if interactive:
        walk(loaded, sampler, ids, {"top": top, "temperatures": warmths})
        return
    report = explain.step(
        loaded,
        ids,
        index=index,
        sampler=sampler,
        top=top,
        temperatures=warmths,
        rolls=overflow == "shift",
    )
    form.show(report, print_step, json_forms.step)


def explain_there(server: Server, text: str, sampling: Sampling, index: int, top: int, form: Form) -> None:
    """Show the index-th token that a server writes, and its rivals as far as it tells them."""
    from llmcli.endpoint.server import Ask
    from llmcli.endpoint.step import server_step
    from llmcli.render import json_forms
    from llmcli.render.step import print_server_step

    fields = fields_of(sampling, server, sampling.seed)
    report = server_step(server, Ask(text, index + 1, fields, rivals=top), index)
    form.show(report, print_server_step, json_forms.server_step)


def walk(loaded: LoadedModel, sampler: Sampler, ids: list[int], shape: dict[str, Any]) -> None:
    """Step by step: show the candidates, append the one that the user picks, and go on until they leave."""
    from llmcli.generation.steps import steps
    from llmcli.render.step import print_step
    from llmcli.render.terminal import printable

    context = list(ids)
    stepping = steps(loaded.model, ids, sampler=sampler, max_new_tokens=loaded.model.config.max_position_embeddings)
    step: Step | None = next(stepping)
    while step is not None:
        report = explain.step_report(step, sampler, loaded.tokenizer, prompt_ids=ids, context_ids=context, **shape)
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
    ranks = {row.rank: row for row in report.candidates}
    while True:
        answer = click.prompt(
            "rank of the next token (Enter: the drawn one, q: leave)", default="", show_default=False
        ).strip()
        if not answer:
            return report.chosen.id
        if answer.lower() in ("q", "quit"):
            return None
        row = ranks.get(int(answer)) if answer.isdecimal() else None
        if row is not None and row.cut != "grammar":
            return row.id
        click.echo(f"{answer!r} is {'no rank in the table' if row is None else 'not allowed by the grammar'}")


def parse_temperatures(text: str | None) -> list[float]:
    """Numbers between commas, each a valid temperature. Errors: anything else."""
    from llmcli.generation.filters import Temperature

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
