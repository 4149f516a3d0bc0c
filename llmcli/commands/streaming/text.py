"""One text on stdout as it is generated, as plain text or NDJSON, and the options for how to print it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import click

from llmcli import explain, generation, render
from llmcli.commands.options.common import bundle
from llmcli.commands.options.model import describe_model
from llmcli.commands.options.prompt_cache import cached_tokens
from llmcli.commands.shell.interrupt import Interrupt
from llmcli.errors import LlmcliError
from llmcli.files.ndjson import write_line
from llmcli.generation.filters import settings_of
from llmcli.render import json_forms

ALTERNATIVES = 5  # that --probs without a number and --json list for each token


@dataclass(frozen=True)
class Printing:
    """How to print a text: with the prompt before it (``echo``), with the probabilities of N alternatives, as JSON."""

    echo: bool
    probs: int | None
    as_json: bool

    @property
    def alternatives(self) -> int | None:
        """How many alternatives of each token to list, or None for no probabilities."""
        return self.probs or (ALTERNATIVES if self.as_json else None)


def write_json(
    generated: generation.Generation, loaded: generation.LoadedModel, ids: list[int], *, alternatives: int
) -> None:
    """Write NDJSON: a start, one line per token, and an end, also after Ctrl-C."""
    sampler = generated.sampler
    filters = [json_forms.filter_settings(filter) for filter in sampler.filters]
    model = describe_model(loaded)
    start = json_forms.generation_start(model, ids, sampler.seed, filters, cached_tokens(generated))
    write_line(start, sys.stdout)
    with Interrupt() as interrupt:
        try:
            for step, _ in generated:
                report = explain.generated_token_of(step, loaded.tokenizer, alternatives)
                write_line(json_forms.rounded(json_forms.generated_token(report), model.digits), sys.stdout)
                interrupt.point()
        except KeyboardInterrupt:
            generated.interrupt()
    end = json_forms.generation_end(
        generated.finish,
        generated.text,
        generated.tokens,
        generated.prefill_seconds,
        generated.decode_seconds,
        proposals(generated),
        generated.valid,
    )
    write_line(end, sys.stdout)


def write_text(
    generated: generation.Generation,
    loaded: generation.LoadedModel,
    *,
    prefix: str,
    alternatives: int | None,
    verbose: bool,
) -> None:
    """Write ``prefix`` and the text as it is generated; then the table of probabilities and the summary on stderr."""
    sampler = generated.sampler
    if verbose:
        chain = ", ".join(render.filter_label(f.name, f.value, settings_of(f)) for f in sampler.filters) or "none"
        render.note(f"{loaded.name}: {loaded.model.dtype_name} on {loaded.model.device}; sampler: {chain}", sys.stderr)
    writer = render.TextWriter(sys.stdout, by_probability=alternatives is not None)
    reports: list[explain.GeneratedToken] = []
    with Interrupt() as interrupt:
        try:
            writer.write(prefix)
            for step, text in generated:
                writer.write(text, step.choice.prob)
                if alternatives is not None:
                    reports.append(explain.generated_token_of(step, loaded.tokenizer, alternatives))
                interrupt.point()
        except KeyboardInterrupt:
            writer.write(generated.interrupt())
        except LlmcliError:  # keep the text so far
            writer.write(generated.interrupt())
            writer.end_line()
            raise
    writer.end_line()
    if alternatives is not None:
        with render.at_most(describe_model(loaded).digits):
            render.print_probabilities(reports, sys.stderr)
    render.print_summary(
        generated,
        sys.stderr,
        seed=sampler.seed,
        context=loaded.model.config.max_position_embeddings,
        proposals=proposals(generated) if verbose else None,
        cached=cached_tokens(generated) or 0,
    )


def proposals(generated: generation.Generation) -> tuple[int, int] | None:
    """How many tokens were proposed and accepted; None without speculative decoding."""
    proposer = generated.proposer
    return None if proposer is None else (proposer.proposed, proposer.accepted)


printing_options = bundle(
    "printing",
    Printing,
    click.option("--echo", is_flag=True, help="Print the prompt before the text."),
    click.option(
        "--probs",
        type=click.IntRange(min=1),
        metavar="[=N]",
        help="Color the text by probability, and list each token with its N best alternatives."
        f"  [without N: {ALTERNATIVES}]",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object per token, with probabilities."),
    title="Output",
)
