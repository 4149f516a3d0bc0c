"""One text as it is written: to be read as it comes, or as NDJSON; and the options that say which."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from llmcli.commands.options.common import bundle
from llmcli.commands.options.prompt_cache import cached
from llmcli.commands.shell.interrupt import Interrupt
from llmcli.errors import LlmcliError

if TYPE_CHECKING:
    from llmcli.explain.report import GeneratedToken
    from llmcli.generation.loaded import LoadedModel
    from llmcli.generation.sampling import Sampler
    from llmcli.generation.text import Generation

RIVALS = 5  # of --probs without a number, and of --json


@dataclass(frozen=True)
class Showing:
    """Whether the prompt is written before the text; with how many rivals of each token, if any; and if as NDJSON."""

    echo: bool
    probs: int | None
    as_json: bool

    @property
    def rivals(self) -> int | None:
        return self.probs or (RIVALS if self.as_json else None)


def write_json(generation: Generation, loaded: LoadedModel, ids: list[int], sampler: Sampler, *, rivals: int) -> None:
    """NDJSON: a start, a line a token, an end, which is written also when interrupted."""
    from llmcli.explain.sampling_step import generated_token_of
    from llmcli.files.ndjson import write_line
    from llmcli.render import json_forms

    filters = [(filter.name, filter.value) for filter in sampler.filters]
    start = json_forms.generation_start(loaded.name, ids, sampler.seed, filters, cached(generation))
    write_line(start, sys.stdout)
    with Interrupt() as interrupt:
        try:
            for step, _ in generation:
                write_line(json_forms.generated_token(generated_token_of(step, loaded.tokenizer, rivals)), sys.stdout)
                interrupt.point()
        except KeyboardInterrupt:
            generation.interrupt()
    end = json_forms.generation_end(
        generation.finish,
        generation.text,
        generation.tokens,
        generation.prefill_seconds,
        generation.decode_seconds,
        guesses(generation),
        generation.valid,
    )
    write_line(end, sys.stdout)


def write_text(
    generation: Generation,
    loaded: LoadedModel,
    sampler: Sampler,
    *,
    echoed: str,
    rivals: int | None,
    verbose: bool,
) -> None:
    """The text as it comes; then, on stderr, the table of probabilities if asked for, and the summary."""
    from llmcli.explain.sampling_step import generated_token_of
    from llmcli.render.generation import TextWriter, filter_label, print_probabilities, print_summary
    from llmcli.render.terminal import note

    if verbose:
        chain = ", ".join(filter_label(filter.name, filter.value) for filter in sampler.filters) or "none"
        note(f"{loaded.name}: {loaded.model.dtype} on {loaded.model.device}; sampler: {chain}", sys.stderr)
    writer = TextWriter(sys.stdout, by_probability=rivals is not None)
    reports: list[GeneratedToken] = []
    with Interrupt() as interrupt:
        try:
            writer.write(echoed)
            for step, text in generation:
                writer.write(text, step.choice.prob)
                if rivals is not None:
                    reports.append(generated_token_of(step, loaded.tokenizer, rivals))
                interrupt.point()
        except KeyboardInterrupt:
            writer.write(generation.interrupt())
        except LlmcliError:  # the text up to there is kept
            writer.write(generation.interrupt())
            writer.end_line()
            raise
    writer.end_line()
    if rivals is not None:
        print_probabilities(reports, sys.stderr)
    print_summary(
        generation,
        sys.stderr,
        seed=sampler.seed,
        context=loaded.model.config.max_position_embeddings,
        guesses=guesses(generation) if verbose else None,
        cached=cached(generation) or 0,
    )


def guesses(generation: Generation) -> tuple[int, int] | None:
    """How many tokens were guessed ahead and how many of them kept, if any were to be."""
    return None if generation.guesser is None else (generation.guesser.guessed, generation.guesser.kept)


showing_options = bundle(
    "showing",
    Showing,
    click.option("--echo", is_flag=True, help="Write the prompt before the text."),
    click.option(
        "--probs",
        type=click.IntRange(min=1),
        metavar="[=N]",
        help=f"Colour the text by probability; list each token with its N best rivals.  [without N: {RIVALS}]",
    ),
    click.option("--json", "as_json", is_flag=True, help="One JSON object a token, with probabilities."),
    title="Output",
)
