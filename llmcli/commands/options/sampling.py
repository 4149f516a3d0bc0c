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
from llmcli.generation.filters import (
    BREAKERS,
    OPTIONS,
    Breakers,
    LogitBias,
    Mirostat,
    NumberFilter,
    NumberOption,
    Penalty,
    Truncation,
    default_order,
    filter_chain,
    filter_of,
)
from llmcli.text.surrogates import is_unicode

NO_BREAKERS = "none"  # the value of --dry-sequence-breaker that removes the default ones


@dataclass(frozen=True)
class Sampling:
    """The sampling options of a command line.

    ``given`` holds the values of filters by name, ``order`` the names of the filters that run. Penalties count the
    last ``window`` tokens (None: all). ``biases`` are tokens, as text or id, and what to add to their logits. DRY stops
    at ``breakers`` (None: the default ones).
    """

    given: dict[str, float]
    order: list[str]
    seed: int | None
    window: int | None
    biases: list[tuple[str, float]]
    breakers: tuple[str, ...] | None = None

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
        for reason, names in self.skipped(own).items():
            render.note(f"not applied, because {reason}: {', '.join(names)}", sys.stderr)
        rows = loaded.model.config.vocab_size
        bias = {explain.find_token(loaded.tokenizer, token, rows): amount for token, amount in self.biases}
        breakers = Breakers(BREAKERS if self.breakers is None else self.breakers, loaded.tokenizer)
        values = {**own, **self.given}
        filters = filter_chain(self.order, values, window=self.window, bias=bias, breakers=breakers)
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

    def skipped(self, own: Mapping[str, float]) -> dict[str, list[str]]:
        """The filters that were given a value but do not run, by the reason; ``own`` are the model's settings."""
        given = [*self.given, *[LogitBias.name] * bool(self.biases)]
        not_listed = [name for name in given if not self._listed(name)]
        replaced = [name for name in given if name not in not_listed and self._replaced(name, own)]
        others = [name for name in self.given if name not in (*not_listed, *replaced)]
        reasons = {"--samplers does not list them": not_listed, "mirostat replaces them": replaced}
        for name in others:
            filter = filter_of(name)
            if filter is not None and name != filter.name and self._is_off(filter, own):
                reasons.setdefault(f"{filter.name} is off", []).append(name)
        return {reason: names for reason, names in reasons.items() if names}

    def adopted(self, own: Mapping[str, float]) -> dict[str, float]:
        """The model's ``own`` settings that apply and change something."""
        return {
            name: value
            for name, value in own.items()
            if self._listed(name)
            and name not in self.given
            and not _changes_nothing(OPTIONS[name], value)
            and not self._replaced(name, own)
        }

    def _listed(self, name: str) -> bool:
        """Whether the filter that ``name`` belongs to is in the order."""
        filter = filter_of(name)
        return (name if filter is None else filter.name) in self.order

    def _is_off(self, filter: type[NumberFilter], own: Mapping[str, float]) -> bool:
        """Whether the filter has the value that turns it off."""
        return {**own, **self.given}.get(filter.name, filter.option.default) == filter.option.off

    def _replaced(self, name: str, own: Mapping[str, float]) -> bool:
        """Whether ``name`` belongs to a filter that Mirostat replaces."""
        filter = filter_of(name)
        is_on = Mirostat.name in self.order and not self._is_off(Mirostat, own)
        return is_on and filter is not None and issubclass(filter, Truncation) and filter is not Mirostat


def _changes_nothing(option: NumberOption, value: float) -> bool:
    return value == option.off == option.default


def parameter_of(name: str) -> str:
    """A filter's name as a Python parameter name."""
    return name.replace("-", "_")


def sampling_parameters() -> tuple[str, ...]:
    """The parameters of ``parse_sampling``, as click names them."""
    others = ("repeat_last_n", "dry_sequence_breaker", "logit_bias", "samplers", "seed")
    return (*(parameter_of(name) for name in OPTIONS), *others)


def parse_sampling(
    *,
    repeat_last_n: int,
    dry_sequence_breaker: tuple[str, ...],
    logit_bias: tuple[str, ...],
    samplers: str,
    seed: int | None,
    **numbers: Any,
) -> Sampling:
    """Check the values of the sampling options before anything is loaded; ``numbers`` are those of the filters."""
    values = {name: numbers[parameter_of(name)] for name in OPTIONS}
    given = {name: float(value) for name, value in values.items() if value is not None}
    order = [name.strip() for name in samplers.split(",") if name.strip()]
    biases = [parse_bias(text) for text in logit_bias]
    amounts = dict(enumerate(amount for _, amount in biases))  # only a model's tokenizer knows the ids
    filter_chain(order, given, bias=amounts)
    window = None if repeat_last_n < 0 else repeat_last_n
    return Sampling(given, order, seed, window, biases, parse_breakers(dry_sequence_breaker))


def parse_breakers(texts: tuple[str, ...]) -> tuple[str, ...] | None:
    """The sequence breakers of DRY: () for "none", None for the default ones. Raises LlmcliError for an empty one."""
    if not all(texts) or (NO_BREAKERS in texts and len(texts) > 1):
        raise usage_error("--dry-sequence-breaker takes a text, or none and nothing else", "for example ';'")
    if not all(map(is_unicode, texts)):
        raise usage_error("--dry-sequence-breaker is not valid Unicode", "use UTF-8")
    return () if texts == (NO_BREAKERS,) else texts or None


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


def number_option(name: str) -> Decorator:
    """The click option of a filter's number."""
    option = OPTIONS[name]
    return click.option(
        f"--{name}",
        *(f"--{alias}" for alias in option.aliases),
        type=click.IntRange(min=int(option.low)) if option.whole else Real(),
        help=f"{option.help}  [default: the model's, else {option.default:g}]",
    )


def sampling_bundle(default_seed: str = "random; printed at the end") -> Decorator:
    """Decorate a command with an option for each filter's numbers and the other sampling options, as ``sampling``.

    ``default_seed`` is what the help says about the command's seed without --seed.
    """
    penalties = [name for name in OPTIONS if issubclass(filter_of(name) or NumberFilter, Penalty)]
    others = [name for name in OPTIONS if name not in penalties]
    return bundle(
        "sampling",
        parse_sampling,
        *map(number_option, [*others, *penalties]),
        click.option(
            "--dry-sequence-breaker",
            multiple=True,
            type=Line(),
            metavar="TEXT",
            help="DRY does not look across this text. Repeatable; none: it looks across all."
            '  [default: line end, : " *]',
        ),
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
