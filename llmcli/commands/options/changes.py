"""``--ablate`` and ``--steer``: running a model without some of its parts, or with a direction added."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmcli import explain, generation, render, storage
from llmcli.commands.options.common import Line, Real, bundle
from llmcli.commands.options.prompt import read_text_file
from llmcli.errors import usage_error

if TYPE_CHECKING:
    from llmcli.explain.interventions.ablation import Replacement


@dataclass(frozen=True)
class Ablation:
    """The parts to remove, and what to put in their place: zeros, or results for a reference text."""

    parts: tuple[str, ...]
    replacement: Replacement
    reference: Path | None

    def apply(self, loaded: generation.LoadedModel) -> generation.LoadedModel:
        """Return the model without the parts; without any, the model itself."""
        if not self.parts:
            return loaded
        text = None if self.reference is None else read_text_file(self.reference)
        return explain.ablate(loaded, self.parts, self.replacement, text)


@dataclass(frozen=True)
class Steering:
    """A file of directions, how much of them to add, and in which layers."""

    file: Path | None
    strength: float
    layers: str | None

    def apply(self, loaded: generation.LoadedModel) -> generation.LoadedModel:
        """Return the steered model; without a file, the model itself."""
        if self.file is None:
            return loaded
        directions = storage.read_directions(self.file)
        return explain.steered(loaded, directions, self.strength, self.layers, render.one_line(self.file.name))


@dataclass(frozen=True)
class Changes:
    """Everything that changes the model while it runs."""

    ablation: Ablation
    steering: Steering

    @property
    def option(self) -> str | None:
        """The option that changes the model, or None."""
        return "--ablate" if self.ablation.parts else None if self.steering.file is None else "--steer"

    def apply(self, loaded: generation.LoadedModel) -> generation.LoadedModel:
        """Return the changed model; without changes, the model itself."""
        return self.steering.apply(self.ablation.apply(loaded))


def parse_ablation(ablate: tuple[str, ...], ablate_with: str | None) -> Ablation:
    """Check the values of the options."""
    given = "zero" if ablate_with is None else ablate_with
    kind, _, file = given.partition(":")
    if given != "zero" and (kind not in ("mean", "resample") or not file):
        raise usage_error(f"--ablate-with {given}: not a replacement", "give zero, mean:FILE or resample:FILE")
    if ablate_with is not None and not ablate:
        raise usage_error("--ablate-with has no effect without --ablate", "name the parts to remove with --ablate")
    if given == "zero":
        return Ablation(ablate, "zero", None)
    return Ablation(ablate, "mean" if kind == "mean" else "resample", Path(file))


def parse_changes(
    ablate: tuple[str, ...],
    ablate_with: str | None,
    steer: Path | None,
    strength: float | None,
    steer_layers: str | None,
) -> Changes:
    """Check the values of the options."""
    if steer is None and (strength is not None or steer_layers is not None):
        option = "--layer" if strength is None else "--strength"
        raise usage_error(f"{option} has no effect without --steer", "name a file of llmcli steer with --steer")
    steering = Steering(steer, 1.0 if strength is None else strength, steer_layers)
    return Changes(parse_ablation(ablate, ablate_with), steering)


_ABLATION = (
    click.option(
        "--ablate",
        multiple=True,
        type=Line(),
        metavar="PART",
        help="Run without a head (3.2), attn.3, mlp.3, layer.3, a neuron (mlp.3.120) or embedding; attn.0-3 for "
        "several layers, mlp.3@4 for one position. Repeatable.",
    ),
    click.option(
        "--ablate-with",
        metavar="HOW",
        help="What replaces the parts' results: zero; mean:FILE, their mean over a text; resample:FILE, their results "
        "for a text at the same position.  [default: zero]",
    ),
)
ablation_options = bundle("ablation", parse_ablation, *_ABLATION, title="Change")
change_options = bundle(
    "changes",
    parse_changes,
    *_ABLATION,
    click.option(
        "--steer",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Add a direction to the residual stream: a file of `llmcli steer`, or a control vector of llama.cpp.",
    ),
    click.option(
        "--strength", type=Real(), help="How much of the direction to add; negative: its opposite.  [default: 1]"
    ),
    click.option(
        "--layer", "steer_layers", metavar="LAYERS", help="Steer only in these layers.  [default: all of the file]"
    ),
    title="Change",
)
