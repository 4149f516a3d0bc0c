"""The sampling options, and how they, the model's own settings and ours become a chain of filters."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from llmcli.commands.interrupt import import_torch
from llmcli.commands.options import Real, bundle

if TYPE_CHECKING:
    from llmcli.generate.loaded import LoadedModel
    from llmcli.generate.sampling import Sampler

# Written out, not taken from the sampler's module: that imports torch, and --help must not.
FILTER_NAMES = "temperature,top-k,top-p,min-p"
_OWN = "  [default: the model's own, else {}]"


@dataclass(frozen=True)
class Sampling:
    """The options that were given, by filter name, the order of the filters, and the seed."""

    given: dict[str, float]
    order: list[str]
    seed: int

    def sampler(self, loaded: LoadedModel) -> Sampler:
        """The sampler asked for; what was not is the model's own, which is then said on stderr, or ours."""
        from llmcli.generate.sampling import Sampler, filter_chain
        from llmcli.render.generation import defaults_line, note

        own = loaded.defaults.sampling
        line = defaults_line(self.adopted(own), loaded.defaults.unmet)
        if line:
            note(line, sys.stderr)
        filters = filter_chain(self.order, {**own, **self.given})
        return Sampler([*loaded.vocabulary_filter(), *filters], self.seed)

    def adopted(self, own: Mapping[str, float]) -> dict[str, float]:
        """Which of the model's ``own`` settings the chain follows."""
        return {name: value for name, value in own.items() if name in self.order and name not in self.given}


def asked(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    samplers: str,
    seed: int | None,
) -> Sampling:
    """The options, checked before anything is loaded. Without a seed, one that nobody can know."""
    import_torch()
    from llmcli.generate.sampling import filter_chain

    values = {"temperature": temperature, "top-k": top_k, "top-p": top_p, "min-p": min_p}
    given = {name: float(value) for name, value in values.items() if value is not None}
    order = [name.strip() for name in samplers.split(",") if name.strip()]
    filter_chain(order, given)
    return Sampling(given, order, secrets.randbelow(2**32) if seed is None else seed)


sampling_options = bundle(
    "sampling",
    asked,
    click.option(
        "--temperature",
        "--temp",
        type=Real(),
        help="Below 1 bolder choices become rarer, above 1 commoner. 0: always the most probable token."
        + _OWN.format(0.8),
    ),
    click.option("--top-k", type=click.IntRange(min=0), help="Keep the K most probable. 0: off." + _OWN.format(0)),
    click.option("--top-p", type=Real(), help="Keep the fewest that reach P together. 1: off." + _OWN.format(0.95)),
    click.option(
        "--min-p", type=Real(), help="Keep those at least P times as probable as the best. 0: off." + _OWN.format(0)
    ),
    click.option(
        "--samplers", metavar="NAMES", default=FILTER_NAMES, show_default=True, help="Which filters run, in what order."
    ),
    click.option("--seed", type=click.IntRange(min=0), help="Repeats a run; random, and reported, if not given."),
)
