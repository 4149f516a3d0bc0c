"""``llmcli generate``: continue a text."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmcli.commands.command import Command
from llmcli.commands.grammar import GrammarChoice, check_valid, grammar_options
from llmcli.commands.helping import heading
from llmcli.commands.interrupt import Interrupt
from llmcli.commands.length import Length, fit, length_options
from llmcli.commands.model import ModelChoice, complete_model, model_options
from llmcli.commands.options import verbose_option
from llmcli.commands.prompt import Prompt, prompt_options
from llmcli.commands.prompt_cache import (
    cached,
    check_prompt_cache,
    open_prompt_cache,
    prompt_cache_option,
    tell_unsaved,
)
from llmcli.commands.samples import Samples, write_samples, write_samples_json
from llmcli.commands.sampling import Sampling, sampling_options
from llmcli.errors import EXIT_INTERRUPTED, usage_error

if TYPE_CHECKING:
    from llmcli.explain.generated import TokenReport
    from llmcli.generate.loaded import LoadedModel
    from llmcli.generate.sampling import Sampler
    from llmcli.generate.steps import Guesser
    from llmcli.generate.text import Generation

RIVALS = 5  # of --probs without a number, and of --json


class GenerateCommand(Command):
    """Lets ``--probs`` stand alone or as ``--probs=N``, and never take the prompt for its N."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f"--probs={RIVALS}" if arg == "--probs" else arg for arg in args])


@click.command(cls=GenerateCommand)
@prompt_options()
@model_options
@sampling_options
@grammar_options
@length_options(least=0)
@heading("Speed")
@click.option("--prompt-lookup", is_flag=True, help="Guess ahead where the text repeats itself.")
@click.option(
    "--draft-model",
    metavar="MODEL",
    shell_complete=complete_model,
    help="Let this smaller model of the same tokenizer guess ahead.",
)
@prompt_cache_option
@heading("Output")
@click.option("--num-samples", type=click.IntRange(min=1), default=1, show_default=True, help="Write so many texts.")
@click.option(
    "--best-of", type=click.IntRange(min=1), help="Write so many texts; show the one the model finds most probable."
)
@click.option("--echo", is_flag=True, help="Write the prompt before the text.")
@click.option(
    "--probs",
    type=click.IntRange(min=1),
    metavar="[=N]",
    help="Colour the text by probability; list each token with its N best rivals.  [without N: 5]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a token, with probabilities.")
@verbose_option
def generate(
    prompt: Prompt,
    choice: ModelChoice,
    sampling: Sampling,
    grammar: GrammarChoice,
    length: Length,
    prompt_lookup: bool,
    draft_model: str | None,
    prompt_cache: Path | None,
    num_samples: int,
    best_of: int | None,
    echo: bool,
    probs: int | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Continue PROMPT, one token after the other.

    The text goes to stdout, everything else to stderr. The prompt may also come from --prompt-file or a
    pipe; an empty one ("") lets the model begin on its own.

    \b
    Examples:
      llmcli generate "Once upon a time"
      llmcli generate "The fox said" --temperature 0.5 --probs
      llmcli generate "The king was very" --choices '[" old", " sad", " tired"]'
      echo "It was a dark night" | llmcli generate -n 50 --json
    """
    if prompt_lookup and draft_model is not None:
        raise usage_error("--prompt-lookup and --draft-model exclude each other", "give one of them")
    grammar.exclude_all(length)
    several = num_samples if best_of is None else best_of
    if num_samples > 1 and best_of is not None:
        raise usage_error("--num-samples and --best-of exclude each other", "give one of them")
    if several > 1 and (prompt_lookup or draft_model is not None):
        raise usage_error("several texts are written without guessing ahead", "leave out what guesses")
    if several > 1 and prompt_cache is not None:
        raise usage_error("--prompt-cache is for one text", "leave it out, or --num-samples and --best-of")
    if prompt_cache is not None:
        check_prompt_cache(prompt_cache)
    text = prompt.read()
    loaded = choice.open()

    from llmcli.generate.text import Generation

    ids = fit(loaded, loaded.prompt_ids(text, parse_special=prompt.parse_special), length.overflow)
    sampler = sampling.sampler(loaded, grammar.filter(loaded, len(ids)))
    if several > 1:
        samples = Samples(loaded, ids, sampler, several, length.limits, rivals=probs or (RIVALS if as_json else None))
        if as_json:
            write_samples_json(samples, best=best_of is not None)
        else:
            write_samples(samples, best=best_of is not None, echoed=text if echo else "")
        if samples.interrupted:
            sys.exit(EXIT_INTERRUPTED)
        check_valid([(row.finish, row.valid) for row in samples.rows() if row.best or best_of is None])
        return
    guesser = make_guesser(loaded, choice, draft_model) if prompt_lookup or draft_model is not None else None
    kept = None if prompt_cache is None else open_prompt_cache(prompt_cache, loaded, ids, length.max_tokens)
    generation = Generation(loaded, ids, sampler=sampler, guesser=guesser, prompt_cache=kept, **length.limits)
    tell_angles(generation.turned_for)
    if as_json:
        write_json(generation, loaded, ids, sampler, rivals=probs or RIVALS)
    else:
        write_text(generation, loaded, sampler, echoed=text if echo else "", rivals=probs, verbose=verbose)
    tell_unsaved(generation)
    if generation.finish == "interrupted":
        sys.exit(EXIT_INTERRUPTED)
    check_valid([(generation.finish, generation.valid)])


def make_guesser(loaded: LoadedModel, choice: ModelChoice, draft_model: str | None) -> Guesser:
    """What guesses ahead: the text itself, or a smaller model opened as the large one is."""
    from llmcli.generate.speculate import DraftModel, PromptLookup, check_vocabularies

    if draft_model is None:
        return PromptLookup()
    draft = replace(choice, model=draft_model, adapter=None).open()
    check_vocabularies(loaded, draft)
    return DraftModel(draft.model)


def tell_angles(length: int) -> None:
    """Say that another --max-tokens would give another text, for the few models of which that is true."""
    from llmcli.render.generation import note

    if length:
        note(f"dynamic rope scaling: positions are turned for {length} tokens, prompt and --max-tokens", sys.stderr)


def write_json(generation: Generation, loaded: LoadedModel, ids: list[int], sampler: Sampler, *, rivals: int) -> None:
    """NDJSON: a start, a line a token, an end, which is written also when interrupted."""
    from llmcli.explain.generated import token_report
    from llmcli.render import ndjson

    filters = [(filter.name, filter.value) for filter in sampler.filters]
    start = ndjson.generation_start(loaded.name, ids, sampler.seed, filters, cached(generation))
    ndjson.write(start, sys.stdout)
    with Interrupt() as interrupt:
        try:
            for step, _ in generation:
                ndjson.write(ndjson.generated_token(token_report(step, loaded.tokenizer, rivals)), sys.stdout)
                interrupt.point()
        except KeyboardInterrupt:
            generation.interrupt()
    end = ndjson.generation_end(
        generation.finish,
        generation.text,
        generation.tokens,
        generation.prefill_seconds,
        generation.decode_seconds,
        guesses(generation),
        generation.valid,
    )
    ndjson.write(end, sys.stdout)


def guesses(generation: Generation) -> tuple[int, int] | None:
    """How many tokens were guessed ahead and how many of them kept, if any were to be."""
    return None if generation.guesser is None else (generation.guesser.guessed, generation.guesser.kept)


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
    from llmcli.explain.generated import token_report
    from llmcli.render.generation import TextWriter, note, print_summary, stage_name
    from llmcli.render.tokens import print_probabilities

    if verbose:
        chain = ", ".join(stage_name(filter.name, filter.value) for filter in sampler.filters) or "none"
        note(f"{loaded.name}: {loaded.model.dtype} on {loaded.model.device}; sampler: {chain}", sys.stderr)
    writer = TextWriter(sys.stdout, by_probability=rivals is not None)
    reports: list[TokenReport] = []
    with Interrupt() as interrupt:
        try:
            writer.write(echoed)
            for step, text in generation:
                writer.write(text, step.choice.prob)
                if rivals is not None:
                    reports.append(token_report(step, loaded.tokenizer, rivals))
                interrupt.point()
        except KeyboardInterrupt:
            writer.write(generation.interrupt())
    writer.end_line()
    if rivals is not None:
        print_probabilities(reports, sys.stderr)
    print_summary(
        sys.stderr,
        prompt_tokens=generation.prompt_tokens,
        tokens=generation.tokens,
        prefill_seconds=generation.prefill_seconds,
        decode_seconds=generation.decode_seconds,
        finish=generation.finish,
        seed=sampler.seed,
        context=(generation.length, loaded.model.config.max_position_embeddings),
        guesses=guesses(generation) if verbose else None,
        cached=cached(generation) or 0,
    )
