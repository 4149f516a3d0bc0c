"""``--ablate``: running a model without some of its parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmcli import explain, generation
from llmcli.commands.options.common import Line, bundle
from llmcli.commands.options.prompt import read_text_file
from llmcli.errors import usage_error

if TYPE_CHECKING:
    from llmcli.explain.ablation import Replacement


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


def parse_ablation(ablate: tuple[str, ...], ablate_with: str) -> Ablation:
    """Check the values of the options."""
    kind, _, file = ablate_with.partition(":")
    if kind == "zero" and not file:
        return Ablation(ablate, "zero", None)
    if kind not in ("mean", "resample") or not file:
        raise usage_error(f"--ablate-with {ablate_with}: not a replacement", "give zero, mean:FILE or resample:FILE")
    if not ablate:
        raise usage_error("--ablate-with has no effect without --ablate", "name the parts to remove with --ablate")
    return Ablation(ablate, "mean" if kind == "mean" else "resample", Path(file))


ablation_options = bundle(
    "ablation",
    parse_ablation,
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
        default="zero",
        show_default=True,
        metavar="HOW",
        help="What replaces the parts' results: zero; mean:FILE, their mean over a text; resample:FILE, their results "
        "for a text at the same position.",
    ),
    title="Change",
)
