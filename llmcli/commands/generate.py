"""``llmcli generate``: continue a text."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from llmcli import generation, render
from llmcli.commands.options.changes import Changes, change_options
from llmcli.commands.options.common import is_verbose, verbose_option
from llmcli.commands.options.distributed import DistributedModelChoice, distributed_model_options, follow
from llmcli.commands.options.endpoint import Endpoint, endpoint_options
from llmcli.commands.options.grammar import GrammarChoice, check_valid, grammar_options
from llmcli.commands.options.length import Length, fit, length_options
from llmcli.commands.options.prompt import Prompt, prompt_options
from llmcli.commands.options.prompt_cache import (
    check_prompt_cache,
    check_saved,
    open_prompt_cache,
    prompt_cache_option,
)
from llmcli.commands.options.run_log import Logging, Setup, log_option, own_settings
from llmcli.commands.options.sampling import Sampling, sampling_options
from llmcli.commands.options.speculative import Speculative, speculative_options
from llmcli.commands.shell.command import Command
from llmcli.commands.streaming.samples import SampleCount, sample_count_options, write_samples
from llmcli.commands.streaming.server import write_server_text
from llmcli.commands.streaming.text import ALTERNATIVES, Printing, printing_options, write_json, write_text
from llmcli.errors import EXIT_INTERRUPTED, usage_error


class GenerateCommand(Command):
    """Accepts ``--probs`` without a value and ``--probs=N``, so that ``--probs PROMPT`` does not take PROMPT for N."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f"--probs={ALTERNATIVES}" if arg == "--probs" else arg for arg in args])


@click.command(cls=GenerateCommand, together=follow)
@prompt_options()
@distributed_model_options
@change_options
@endpoint_options
@sampling_options
@grammar_options
@length_options(least=0)
@speculative_options
@prompt_cache_option
@sample_count_options
@printing_options
@log_option
@verbose_option
def generate(
    prompt: Prompt,
    choice: DistributedModelChoice,
    changes: Changes,
    endpoint: Endpoint,
    sampling: Sampling,
    grammar: GrammarChoice,
    length: Length,
    speculative: Speculative,
    prompt_cache: Path | None,
    samples: SampleCount,
    printing: Printing,
    logging: Logging,
) -> None:
    """Continue PROMPT, token by token.

    The text goes to stdout, everything else to stderr. The prompt can also come from --prompt-file or a
    pipe; with an empty prompt ("") the model starts on its own.

    \b
    Examples:
      llmcli generate "Once upon a time"
      llmcli generate "The fox said" --temperature 0.5 --probs
      llmcli generate "The king was very" --choices '[" old", " sad", " tired"]'
      echo "It was a dark night" | llmcli generate -n 50 --json
    """
    if endpoint.given:
        write_server_text(endpoint.open(), prompt.read(), sampling, length, printing, logging)
        return
    grammar.exclude_all(length)
    _check_combinations(choice, changes, speculative, prompt_cache, samples)
    text = prompt.read()
    loaded = changes.apply(choice.open())
    length = grammar.limits_of(length, loaded)
    ids = fit(loaded, text, length.overflow, parse_special=prompt.parse_special)
    sampler = sampling.sampler(loaded, grammar.filter(loaded, len(ids)), length.adopted)
    prefix = text if printing.echo else ""
    limits = (length.max_tokens, length.stop, length.overflow == "shift")
    setup = Setup(choice, changes, sampling, grammar, *limits, own_settings(loaded))
    if samples.count > 1:
        several = generation.Samples(loaded, ids, sampler, samples.count, **length.limits)
        interrupted = write_samples(several, samples, printing, prefix)
        results = several.results()
        logging.keep(loaded, setup, text, ids, {sample.seed: sample for sample in results})
        if interrupted:
            sys.exit(EXIT_INTERRUPTED)
        shown = [sample for sample in results if sample.best or not samples.best]
        check_valid([(sample.finish, sample.valid) for sample in shown])
        return
    proposer = speculative.proposer(loaded, choice)
    cache = None if prompt_cache is None else open_prompt_cache(prompt_cache, loaded, ids, length.max_tokens)
    generated = generation.Generation(loaded, ids, sampler=sampler, proposer=proposer, cache=cache, **length.limits)
    _report_rope_length(generated.rope_length)
    if printing.as_json:
        write_json(generated, loaded, ids, alternatives=printing.probs or ALTERNATIVES)
    else:
        write_text(generated, loaded, prefix=prefix, alternatives=printing.probs, verbose=is_verbose())
    logging.keep(loaded, setup, text, ids, {sampler.seed: generated})
    check_saved(generated)
    if generated.finish == "interrupted":
        sys.exit(EXIT_INTERRUPTED)
    check_valid([(generated.finish, generated.valid)])


def _check_combinations(
    choice: DistributedModelChoice,
    changes: Changes,
    speculative: Speculative,
    prompt_cache: Path | None,
    samples: SampleCount,
) -> None:
    """Raise LlmcliError if options cannot be combined, or the prompt cache cannot be written."""
    if samples.count > 1 and speculative.given:
        raise usage_error("speculative decoding generates only one text", "omit it, or --num-samples and --best-of")
    if samples.count > 1 and prompt_cache is not None:
        raise usage_error("--prompt-cache works with only one text", "omit it, or --num-samples and --best-of")
    if prompt_cache is not None:
        check_prompt_cache(prompt_cache)
    if changes.option and prompt_cache is not None:
        raise usage_error(
            "a prompt cache holds what the model computes without changes", f"omit {changes.option} or --prompt-cache"
        )
    choice.exclude(changes.option or "", changes.option)
    choice.exclude("--prompt-cache", prompt_cache)
    choice.exclude("--num-samples (or --best-of)", samples.count > 1)


def _report_rope_length(length: int) -> None:
    """Print a note for the few models whose text depends on --max-tokens."""
    if length:
        render.note(
            f"dynamic RoPE scaling: angles are computed for {length} tokens (prompt and --max-tokens)", sys.stderr
        )
