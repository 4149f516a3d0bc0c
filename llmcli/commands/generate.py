"""``llmcli generate``: continue a text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.distributed import SplitChoice, split_options
from llmcli.commands.options.endpoint import Endpoint, endpoint_options
from llmcli.commands.options.grammar import GrammarChoice, check_valid, grammar_options
from llmcli.commands.options.length import Length, fit, length_options
from llmcli.commands.options.prompt import Prompt, prompt_options
from llmcli.commands.options.prompt_cache import (
    check_prompt_cache,
    open_prompt_cache,
    prompt_cache_option,
    tell_unsaved,
)
from llmcli.commands.options.sampling import Sampling, sampling_options
from llmcli.commands.options.speculative import Ahead, ahead_options
from llmcli.commands.shell.command import Command
from llmcli.commands.writing.samples import Samples, Several, several_options, write_samples, write_samples_json
from llmcli.commands.writing.server import answer
from llmcli.commands.writing.text import RIVALS, Showing, showing_options, write_json, write_text
from llmcli.errors import EXIT_INTERRUPTED, usage_error

if TYPE_CHECKING:
    pass


class GenerateCommand(Command):
    """Lets ``--probs`` stand alone or as ``--probs=N``, and never take the prompt for its N."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f"--probs={RIVALS}" if arg == "--probs" else arg for arg in args])


@click.command(cls=GenerateCommand, together="share")
@prompt_options()
@split_options
@endpoint_options
@sampling_options
@grammar_options
@length_options(least=0)
@ahead_options
@prompt_cache_option
@several_options
@showing_options
@verbose_option
def generate(
    prompt: Prompt,
    choice: SplitChoice,
    endpoint: Endpoint,
    sampling: Sampling,
    grammar: GrammarChoice,
    length: Length,
    ahead: Ahead,
    prompt_cache: Path | None,
    several: Several,
    showing: Showing,
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
    if endpoint.given:
        answer(endpoint.open(), prompt.read(), sampling, length, showing)
        return
    grammar.exclude_all(length)
    if several.count > 1 and ahead.given:
        raise usage_error("several texts are written without guessing ahead", "leave out what guesses")
    if several.count > 1 and prompt_cache is not None:
        raise usage_error("--prompt-cache is for one text", "leave it out, or --num-samples and --best-of")
    if prompt_cache is not None:
        check_prompt_cache(prompt_cache)
    choice.exclude("--prompt-cache", prompt_cache)
    choice.exclude("--num-samples (or --best-of)", several.count > 1)
    text = prompt.read()
    loaded = choice.open()

    from llmcli.generation.text import Generation

    ids = fit(loaded, loaded.prompt_ids(text, parse_special=prompt.parse_special), length.overflow)
    sampler = sampling.sampler(loaded, grammar.filter(loaded, len(ids)))
    echoed = text if showing.echo else ""
    if several.count > 1:
        samples = Samples(loaded, ids, sampler, several.count, length.limits, rivals=showing.rivals)
        write_several(samples, several, showing, echoed)
        return
    guesser = ahead.guesser(loaded, choice)
    kept = None if prompt_cache is None else open_prompt_cache(prompt_cache, loaded, ids, length.max_tokens)
    generation = Generation(loaded, ids, sampler=sampler, guesser=guesser, prompt_cache=kept, **length.limits)
    tell_angles(generation.turned_for)
    if showing.as_json:
        write_json(generation, loaded, ids, sampler, rivals=showing.probs or RIVALS)
    else:
        write_text(generation, loaded, sampler, echoed=echoed, rivals=showing.probs, verbose=verbose)
    tell_unsaved(generation)
    if generation.finish == "interrupted":
        sys.exit(EXIT_INTERRUPTED)
    check_valid([(generation.finish, generation.valid)])


def write_several(samples: Samples, several: Several, showing: Showing, echoed: str) -> None:
    """All texts or the best of them, and how it ended. Errors: a text that was to be shown is not what was asked."""
    if showing.as_json:
        write_samples_json(samples, best=several.best)
    else:
        write_samples(samples, best=several.best, echoed=echoed)
    if samples.interrupted:
        sys.exit(EXIT_INTERRUPTED)
    check_valid([(row.finish, row.valid) for row in samples.rows() if row.best or not several.best])


def tell_angles(length: int) -> None:
    """Say that another --max-tokens would give another text, for the few models of which that is true."""
    from llmcli.render.terminal import note

    if length:
        note(f"dynamic rope scaling: positions are turned for {length} tokens, prompt and --max-tokens", sys.stderr)
