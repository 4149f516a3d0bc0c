"""``llmcli explain-step``: how was this token chosen?"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from llmcli import endpoint as servers
from llmcli import explain, generation, render
from llmcli.commands.options.changes import Changes, change_options
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.distributed import DistributedModelChoice, distributed_model_options, follow
from llmcli.commands.options.endpoint import Endpoint, endpoint_options, fields_of
from llmcli.commands.options.grammar import GrammarChoice, grammar_options
from llmcli.commands.options.length import fit, overflow_option
from llmcli.commands.options.model import describe_model
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.options.prompt import Prompt, prompt_options
from llmcli.commands.options.sampling import Sampling, sampling_options
from llmcli.commands.shell.command import Command
from llmcli.commands.shell.help import heading
from llmcli.errors import usage_error
from llmcli.generation.filters import Temperature
from llmcli.render import json_forms


@click.command(cls=Command, together=follow)
@prompt_options()
@heading("Display")
@click.option(
    "--step", "index", type=click.IntRange(min=0), default=0, show_default=True, help="Which generated token, from 0."
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="List the N most probable candidates before and after the filters.",
)
@click.option("--temperatures", metavar="LIST", help="Compare temperatures, for example 0,0.5,1,1.5.")
@overflow_option
@click.option("--interactive", is_flag=True, help="Choose each token yourself, step by step.")
@output_options
@distributed_model_options
@change_options
@endpoint_options
@sampling_options
@grammar_options
@verbose_option
def explain_step(
    prompt: Prompt,
    index: int,
    top: int,
    temperatures: str | None,
    overflow: generation.Overflow,
    interactive: bool,
    output: OutputOptions,
    choice: DistributedModelChoice,
    changes: Changes,
    endpoint: Endpoint,
    sampling: Sampling,
    grammar: GrammarChoice,
) -> None:
    """How was this token chosen? Show each candidate's logit and probability, the filter that cut it, and the draw.

    With the options and the seed of a `generate` run, --step N explains the token that the run generated at step N.

    \b
    Examples:
      llmcli explain-step "Once upon a"
      llmcli explain-step "The king was" --seed 7 --step 3 --temperature 1.2
      llmcli explain-step "She opened the" --temperatures 0,0.5,1,2
      llmcli explain-step "The king was very" --choices '[" old", " sad"]'
    """
    if overflow == "shift":
        grammar.exclude("--context-overflow shift", "the grammar needs the whole text")
    choice.exclude(changes.option or "", changes.option)
    text = prompt.read()
    compared = parse_temperatures(temperatures)
    if interactive and (output.as_json or output.picture or not (sys.stdin.isatty() and sys.stdout.isatty())):
        raise usage_error("--interactive needs a terminal, and cannot be combined with --json or --save", "omit it")
    if endpoint.given:
        explain_server_step(endpoint.open(), text, sampling, index, top, output)
        return
    loaded = changes.apply(choice.open())
    ids = fit(loaded, text, overflow, parse_special=prompt.parse_special)
    sampler = sampling.sampler(loaded, grammar.filter(loaded, len(ids)))
    if interactive:
        choose_tokens(loaded, sampler, ids, top, compared)
        return
    rolls = overflow == "shift"
    report = explain.step(loaded, ids, index=index, sampler=sampler, top=top, temperatures=compared, rolls=rolls)
    output.show(report, render.print_step, json_forms.step, prompt=text, models=[describe_model(loaded)])


def explain_server_step(
    server: servers.Server, text: str, sampling: Sampling, index: int, top: int, output: OutputOptions
) -> None:
    """Show token ``index`` of a server's text, and the alternatives that the server reports."""
    fields = fields_of(sampling, server, sampling.seed)
    report = servers.server_step(server, servers.Request(text, index + 1, fields, top_logprobs=top), index)
    output.show(
        report, render.print_server_step, json_forms.server_step, prompt=text, models=[render.ModelLabel(report.model)]
    )


def choose_tokens(
    loaded: generation.LoadedModel,
    sampler: generation.Sampler,
    prompt_ids: list[int],
    top: int,
    temperatures: Sequence[float],
) -> None:
    """Show the candidates of each step and append the one that the user chooses, until they quit."""
    model = describe_model(loaded)
    context, limit = list(prompt_ids), loaded.model.config.max_position_embeddings
    steps = generation.decode_steps(
        loaded.model, generation.Continuation(list(prompt_ids), sampler, max_new_tokens=limit, context=limit)
    )
    step: generation.Step | None = next(steps)
    while step is not None:
        report = explain.step_report(
            step,
            sampler,
            loaded.tokenizer,
            prompt_ids=prompt_ids,
            context_ids=context,
            top=top,
            temperatures=temperatures,
        )
        with render.at_most(model.digits):
            render.print_step(report, sys.stdout)
        render.print_model_lines([model], sys.stdout)
        token = ask_for_token(report)
        if token is None:
            break
        context.append(token)
        click.echo("\n" + render.printable(loaded.tokenizer.decode(context), sys.stdout) + "\n")
        try:
            step = steps.send(token)
        except StopIteration:
            step = None


def ask_for_token(report: explain.StepReport) -> int | None:
    """Ask for the rank of a candidate and return its id: Enter returns the drawn token, q returns None."""
    ranks = {row.rank: row for row in report.candidates}
    while True:
        answer = click.prompt(
            "rank of the next token (Enter: the drawn token, q: quit)", default="", show_default=False
        ).strip()
        if not answer:
            return report.chosen.id
        if answer.lower() in ("q", "quit"):
            return None
        row = ranks.get(int(answer)) if answer.isdecimal() else None
        if row is not None and row.cut != "grammar":
            return row.id
        click.echo(f"{answer!r} is not {'a rank in the table' if row is None else 'allowed by the grammar'}")


def parse_temperatures(text: str | None) -> list[float]:
    """Parse numbers separated by commas. Raises LlmcliError unless each is a valid temperature."""
    values = []
    for word in (text or "").split(","):
        if not word.strip():
            continue
        try:
            values.append(float(word))
        except ValueError:
            raise usage_error(f"--temperatures: {word!r} is not a number", "for example 0,0.5,1,1.5") from None
        Temperature(values[-1])
    if text is not None and not values:
        raise usage_error("--temperatures has no numbers", "for example 0,0.5,1,1.5")
    return values
