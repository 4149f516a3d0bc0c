"""The sampling options. Their values, the model's own settings and the defaults become a chain of filters."""

from __future__ import annotations

import math
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from llmcli import explain, generation, render
from llmcli.commands.options.common import Line, Real, bundle
from llmcli.commands.shell.help import Decorator
from llmcli.errors import usage_error
from llmcli.generation.filters import FILTERS, LogitBias, NumberFilter, Penalty, default_order, filter_chain


@dataclass(frozen=True)
class Sampling:
    """The sampling options of a command line.

    ``given`` holds the values of filters by name, ``order`` the names of the filters that run. Penalties count the
    last ``window`` tokens (None: all). ``biases`` are tokens, as text or id, and what to add to their logits.
    """

    given: dict[str, float]
    order: list[str]
    seed: int | None
    window: int | None
    biases: list[tuple[str, float]]

    def sampler(
        self,
        loaded: generation.LoadedModel,
        grammar: generation.GrammarFilter | None = None,
        limits: Mapping[str, str] | None = None,
    ) -> generation.Sampler:
        """The sampler for ``loaded``, which chooses among the tokens that ``grammar`` allows.

        Options that were not given come from the model's generation_config.json, as a line on stderr reports together
        with its ``limits`` that apply, or else have their defaults. Without --seed the seed is random.
        """
        self._report(loaded.defaults, limits or {})
        own = loaded.defaults.sampling
        if self.skipped:
            render.note(f"not applied, because --samplers does not list them: {', '.join(self.skipped)}", sys.stderr)
        rows = loaded.model.config.vocab_size
        bias = {explain.find_token(loaded.tokenizer, token, rows): amount for token, amount in self.biases}
        filters = filter_chain(self.order, {**own, **self.given}, window=self.window, bias=bias)
        seed = secrets.randbelow(2**32) if self.seed is None else self.seed
        rules = [] if grammar is None else [grammar]
        return generation.Sampler([*loaded.vocabulary_filter(), *rules, *loaded.length_filter(), *filters], seed)

    def _report(self, own: generation.Defaults, limits: Mapping[str, str]) -> None:
        """Print which of the model's own settings apply, and which do not."""
        if own.fault:
            render.note(f"generation_config.json is not used: {own.fault}", sys.stderr)
        applied = {name: f"{value:g}" for name, value in self.adopted(own.sampling).items()} | dict(limits)
        if own.min_new_tokens:
            applied["min-new-tokens"] = str(own.min_new_tokens)
        replaced = {parameter_of(name) for name in self.given}
        unusable = {key: value for key, value in own.unusable.items() if key not in replaced}
        line = render.defaults_line(applied, own.unmet, unusable)
        if line:
            render.note(line, sys.stderr)

    @property
    def skipped(self) -> list[str]:
        """Filters that were given a value but are not in the order."""
        given = [*self.given, *[LogitBias.name] * bool(self.biases)]
        return [name for name in given if name not in self.order]

    def adopted(self, own: Mapping[str, float]) -> dict[str, float]:
        """The model's ``own`` settings that apply and change something."""
        return {
            name: value
            for name, value in own.items()
            if name in self.order and name not in self.given and not _changes_nothing(FILTERS[name], value)
        }


def _changes_nothing(filter: type[NumberFilter], value: float) -> bool:
    return value == filter.option.off == filter.option.default


def parameter_of(name: str) -> str:
    """A filter's name as a Python parameter name."""
    return name.replace("-", "_")


def sampling_parameters() -> tuple[str, ...]:
    """The parameters of ``parse_sampling``, as click names them."""
    others = ("repeat_last_n", "logit_bias", "samplers", "seed")
    return (*(parameter_of(name) for name in FILTERS), *others)


def parse_sampling(
    *, repeat_last_n: int, logit_bias: tuple[str, ...], samplers: str, seed: int | None, **filters: Any
) -> Sampling:
    """Check the values of the sampling options before anything is loaded; ``filters`` has one for each filter."""
    values = {name: filters[parameter_of(name)] for name in FILTERS}
    given = {name: float(value) for name, value in values.items() if value is not None}
    order = [name.strip() for name in samplers.split(",") if name.strip()]
    biases = [parse_bias(text) for text in logit_bias]
    amounts = dict(enumerate(amount for _, amount in biases))  # only a model's tokenizer knows the ids
    filter_chain(order, given, bias=amounts)
    window = None if repeat_last_n < 0 else repeat_last_n
    return Sampling(given, order, seed, window, biases)


def parse_bias(text: str) -> tuple[str, float]:
    """Parse " Paris=+5" into the token and the number. Raises LlmcliError for any other form."""
    token, sign, number = text.rpartition("=")
    try:
        amount = float(number)
    except ValueError:
        amount = math.nan
    if not sign or not token or math.isnan(amount) or amount == math.inf:
        raise usage_error(
            f"--logit-bias takes TOKEN=NUMBER, not {text!r}", "for example ' Paris=+5', 262=-3 or ' the=-inf'"
        )
    return token, amount


def filter_option(filter: type[NumberFilter]) -> Decorator:
    """The click option of one filter."""
    option = filter.option
    return click.option(
        f"--{filter.name}",
        *(f"--{alias}" for alias in option.aliases),
        type=click.IntRange(min=int(option.low)) if option.whole else Real(),
        help=f"{option.help}  [default: the model's, else {option.default:g}]",
    )


def sampling_bundle(default_seed: str = "random; printed at the end") -> Decorator:
    """Decorate a command with an option for each filter and the other sampling options, as ``sampling``.

    ``default_seed`` is what the help says about the command's seed without --seed.
    """
    penalties = [filter for filter in FILTERS.values() if issubclass(filter, Penalty)]
    others = [filter for filter in FILTERS.values() if not issubclass(filter, Penalty)]
    return bundle(
        "sampling",
        parse_sampling,
        *map(filter_option, [*others, *penalties]),
        click.option(
            "--repeat-last-n",
            type=click.IntRange(min=-1),
            default=-1,
            show_default=True,
            help="How many of the last tokens the penalties count, prompt included. -1: all.",
        ),
        click.option(
            "--logit-bias",
            multiple=True,
            type=Line(),
            metavar="TOKEN=N",
            help="Add N to the logit of a token, given as text or id: 262=+5 or ' Paris=-inf'. Repeatable.",
        ),
        click.option(
            "--samplers",
            metavar="NAMES",
            default=",".join(default_order()),
            show_default=True,
            help="Which filters run, and in what order.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            help=f"Seed of the random draws; the same seed repeats a run.  [default: {default_seed}]",
        ),
        title="Sampling",
        parameters=sampling_parameters(),
    )


sampling_options = sampling_bundle()
