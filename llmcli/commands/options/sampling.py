"""The sampling options, and how they, the model's own settings and ours become a chain of filters."""

from __future__ import annotations

import math
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from llmcli.commands.options.common import Line, Real, bundle
from llmcli.commands.shell.interrupt import import_torch
from llmcli.errors import usage_error

if TYPE_CHECKING:
    from llmcli.generation.grammar import GrammarFilter
    from llmcli.generation.loaded import LoadedModel
    from llmcli.generation.sampling import Sampler

# Written out, not taken from the sampler's module: that imports torch, and --help must not.
FILTER_NAMES = (
    "logit-bias,repetition-penalty,presence-penalty,frequency-penalty,temperature,top-k,top-p,min-p,typical-p"
)
_OWN = "  [default: the model's, else {}]"


@dataclass(frozen=True)
class Sampling:
    """The options that were given, by filter name, the order of the filters, and the seed.

    ``window`` is how many of the last tokens penalties count (None: all), ``biases`` are tokens as they
    were written, and what is added to their logits.
    """

    given: dict[str, float]
    order: list[str]
    seed: int | None
    window: int | None
    biases: list[tuple[str, float]]

    def sampler(self, loaded: LoadedModel, grammar: GrammarFilter | None = None) -> Sampler:
        """The sampler asked for; what was not is the model's own, which is then said on stderr, or ours.

        Without a seed it gets one that nobody can know. All of it chooses among what ``grammar`` allows.
        """
        from llmcli.explain.selection import find_token
        from llmcli.generation.filters import filter_chain
        from llmcli.generation.sampling import Sampler
        from llmcli.render.generation import defaults_line
        from llmcli.render.terminal import note

        own = loaded.defaults.sampling
        line = defaults_line(self.adopted(own), loaded.defaults.unmet)
        if line:
            note(line, sys.stderr)
        if self.left_out:
            note(f"not applied, for --samplers leaves it out: {', '.join(self.left_out)}", sys.stderr)
        rows = loaded.model.config.vocab_size
        bias = {find_token(loaded.tokenizer, token, rows): amount for token, amount in self.biases}
        filters = filter_chain(self.order, {**own, **self.given}, window=self.window, bias=bias)
        seed = secrets.randbelow(2**32) if self.seed is None else self.seed
        rules = [] if grammar is None else [grammar]
        return Sampler([*loaded.vocabulary_filter(), *rules, *filters], seed)

    @property
    def left_out(self) -> list[str]:
        """Which filters were given a value, but no place in the order."""
        given = [*self.given, *["logit-bias"] * bool(self.biases)]
        return [name for name in given if name not in self.order]

    def adopted(self, own: Mapping[str, float]) -> dict[str, float]:
        """Which of the model's ``own`` settings the chain follows, but for those that change nothing."""
        from llmcli.generation.filters import DEFAULTS, OFF

        return {
            name: value
            for name, value in own.items()
            if name in self.order and name not in self.given and not value == OFF.get(name) == DEFAULTS[name]
        }


def asked(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    typical_p: float | None,
    repetition_penalty: float | None,
    presence_penalty: float | None,
    frequency_penalty: float | None,
    repeat_last_n: int,
    logit_bias: tuple[str, ...],
    samplers: str,
    seed: int | None,
) -> Sampling:
    """The options, checked before anything is loaded."""
    import_torch()
    from llmcli.generation.filters import filter_chain

    values = {
        "temperature": temperature,
        "top-k": top_k,
        "top-p": top_p,
        "min-p": min_p,
        "typical-p": typical_p,
        "repetition-penalty": repetition_penalty,
        "presence-penalty": presence_penalty,
        "frequency-penalty": frequency_penalty,
    }
    given = {name: float(value) for name, value in values.items() if value is not None}
    order = [name.strip() for name in samplers.split(",") if name.strip()]
    biases = [parse_bias(text) for text in logit_bias]
    amounts = dict(enumerate(amount for _, amount in biases))  # of which tokens, only the model can tell
    filter_chain(order, given, bias=amounts)
    window = None if repeat_last_n < 0 else repeat_last_n
    return Sampling(given, order, seed, window, biases)


def parse_bias(text: str) -> tuple[str, float]:
    """ " Paris=+5" as the token and the number. Errors: anything else."""
    token, sign, number = text.rpartition("=")
    try:
        amount = float(number)
    except ValueError:
        amount = math.nan
    if not sign or not token or math.isnan(amount) or amount == math.inf:
        raise usage_error(f"--logit-bias {text!r} is not TOKEN=NUMBER", "as in ' Paris=+5', 262=-3 or ' the=-inf'")
    return token, amount


sampling_options = bundle(
    "sampling",
    asked,
    click.option(
        "--temperature",
        "--temp",
        type=Real(),
        help="Below 1 rare tokens come less, above 1 more. 0: the best alone." + _OWN.format(0.8),
    ),
    click.option("--top-k", type=click.IntRange(min=0), help="Keep the N most probable. 0: off." + _OWN.format(0)),
    click.option("--top-p", type=Real(), help="Keep the fewest that reach X together. 1: off." + _OWN.format(0.95)),
    click.option(
        "--min-p", type=Real(), help="Keep those at least X times as probable as the best. 0: off." + _OWN.format(0)
    ),
    click.option(
        "--typical-p",
        type=Real(),
        help="Keep the least unusual that reach X together. 1: off." + _OWN.format(1),
    ),
    click.option(
        "--repetition-penalty",
        "--repeat-penalty",
        type=Real(),
        help="Above 1 makes tokens that came before rarer. 1: off." + _OWN.format(1),
    ),
    click.option(
        "--presence-penalty",
        type=Real(),
        help="Taken from the logit of each token that came before. 0: off." + _OWN.format(0),
    ),
    click.option(
        "--frequency-penalty",
        type=Real(),
        help="Likewise, once for each time that it came. 0: off." + _OWN.format(0),
    ),
    click.option(
        "--repeat-last-n",
        type=click.IntRange(min=-1),
        default=-1,
        show_default=True,
        help="How many of the last tokens, prompt and all, the penalties count. -1: all.",
    ),
    click.option(
        "--logit-bias",
        multiple=True,
        type=Line(),
        metavar="TOKEN=N",
        help="Add N to a token's logit, by text or id, as in 262=+5 or ' Paris=-inf'. May be repeated.",
    ),
    click.option(
        "--samplers", metavar="NAMES", default=FILTER_NAMES, show_default=True, help="Which filters run, in what order."
    ),
    click.option("--seed", type=click.IntRange(min=0), help="Repeats a run.  [default: random, and told]"),
    title="Sampling",
)
