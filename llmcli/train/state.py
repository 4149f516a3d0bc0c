"""A run on disk: its state, from which it resumes exactly, and the stages of a recipe, each in its own folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer

from llmcli.errors import LlmcliError
from llmcli.files.atomic import replacing
from llmcli.files.safetensors import TensorFile, write_tensors
from llmcli.model.transformer import Transformer
from llmcli.train.recipe import Recipe

FILE = "state.safetensors"


@dataclass(frozen=True)
class Stage:
    """One run of a recipe: its own recipe, its folder, and the model it starts from, None for a new one."""

    recipe: Recipe
    out: Path
    init: Path | None

    @property
    def begun(self) -> bool:
        """Whether there is a state to resume from."""
        return (self.out / FILE).exists()

    @property
    def done(self) -> bool:
        return self.begun and saved_step(self.out / FILE) >= self.recipe.steps


def stages(recipes: Sequence[Recipe], out: Path, init: Path | None) -> list[Stage]:
    """Return the runs of a recipe. The last one's folder is ``out``; the others' folders are inside it.

    Each stage starts from the model of the stage before it, the first from ``init``.
    """
    found: list[Stage] = []
    for number, recipe in enumerate(recipes, start=1):
        folder = out if number == len(recipes) else out / f"{number}-{recipe.method}"
        found.append(Stage(recipe, folder, found[-1].out if found else init))
    return found


def save_state(
    path: Path, model: Transformer, optimizers: list[Optimizer], kept: Mapping[str, Tensor], *, step: int, corpus: str
) -> None:
    """Save everything that later steps depend on, in fp32. The file is written completely or not at all.

    ``kept`` are the objective's tensors, ``corpus`` is the digest of the examples.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"kept.{name}": tensor for name, tensor in kept.items()}
    for i, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{number}.{key}": torch.as_tensor(value) for key, value in state.items()}
    with replacing(path) as file:
        write_tensors(file, tensors, {"step": str(step), "corpus": corpus})


def load_state(path: Path, model: Transformer, optimizers: list[Optimizer], kept: dict[str, Tensor]) -> int:
    """Restore what ``save_state`` saved for a run with the same recipe, and return its step."""
    if not path.is_file():
        raise LlmcliError(f"{path}: no such file", kind="nothing-to-resume")
    step = saved_step(path)
    tensors = load_file(path)
    model.load_state_dict(_with_prefix("model.", tensors))
    kept.update(_with_prefix("kept.", tensors))
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _with_prefix(f"optimizer.{i}.", tensors).items():
            number, key = name.split(".")
            state.setdefault(int(number), {})[key] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return step


def saved_step(path: Path) -> int:
    """Return the number of steps that the saved run had taken."""
    return int(TensorFile(path).metadata["step"])


def saved_corpus(path: Path) -> str | None:
    """Return the digest of the saved run's examples; None if the file does not hold it."""
    return TensorFile(path).metadata.get("corpus")


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, by their names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
