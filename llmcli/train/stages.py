"""A recipe of several runs: each in a folder of its own, beginning with the model that the one before it made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmcli.train import state
from llmcli.train.recipe import Recipe


@dataclass(frozen=True)
class Stage:
    """A run: its recipe, its folder, and the model it begins with, if it begins with one."""

    recipe: Recipe
    out: Path
    init: Path | None

    @property
    def begun(self) -> bool:
        """Whether there is something to go on with."""
        return (self.out / state.FILE).exists()

    @property
    def done(self) -> bool:
        return self.begun and state.saved_step(self.out / state.FILE) >= self.recipe.steps


def stages(recipes: Sequence[Recipe], out: Path, init: Path | None) -> list[Stage]:
    """The runs of a recipe: the last one's folder is ``out``, those of the others lie in it."""
    found: list[Stage] = []
    for number, recipe in enumerate(recipes, start=1):
        folder = out if number == len(recipes) else out / f"{number}-{recipe.method}"
        found.append(Stage(recipe, folder, found[-1].out if found else init))
    return found
