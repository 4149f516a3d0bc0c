"""A run on disk: its state, from which it resumes exactly, and the stages of a recipe, each in its own folder."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from llmcli.engine.size import empty_model
from llmcli.errors import LlmcliError
from llmcli.files.atomic import replacing
from llmcli.files.safetensors import TensorFile, write_tensors
from llmcli.model.config import ModelConfig
from llmcli.model.transformer import Transformer
from llmcli.train.objective import Objective
from llmcli.train.recipe import Recipe

FILE = "state.safetensors"
OPTIMIZER_KEYS = {AdamW: ("step", "exp_avg", "exp_avg_sq"), Muon: ("momentum_buffer",)}  # per parameter
EXPERTS = re.compile(r"\.experts\.")


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


def load_state(path: Path, model: Transformer, optimizers: list[Optimizer], objective: Objective) -> int:
    """Restore what ``save_state`` saved for a run with the same recipe, and return its step.

    Raises LlmcliError unless the file has exactly the tensors of such a run: without an optimizer's tensors, the run
    would resume, but not exactly.
    """
    if not path.is_file():
        raise LlmcliError(f"{path}: no such file", kind="nothing-to-resume")
    step, file = saved_step(path), TensorFile(path)
    tensors = {name: file.read(entry) for name, entry in file.entries.items()}
    shapes = {f"model.{name}": tensor.shape for name, tensor in model.state_dict().items()}
    shapes |= {f"kept.{name}": torch.Size(shape) for name, shape in objective.kept_shapes.items()}
    shapes |= _optimizer_shapes(model, optimizers, tensors.keys()) if step else {}
    for name in sorted(shapes.keys() | tensors.keys()):
        if name not in shapes or name not in tensors or tensors[name].shape != shapes[name]:
            raise _invalid(path, f"{name} is missing, unexpected or misshapen")
        if name.endswith(".step") and not tensors[name] >= 1:  # Adam divides by a power of it minus 1
            raise _invalid(path, f"{name} is below 1")
    model.load_state_dict(_with_prefix("model.", tensors))
    objective.kept.update(_with_prefix("kept.", tensors))
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _with_prefix(f"optimizer.{i}.", tensors).items():
            number, key = name.split(".")
            state.setdefault(int(number), {})[key] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return step


def check_shapes(path: Path, config: ModelConfig) -> None:
    """Raise LlmcliError unless the saved weights have the shapes of ``config``, before memory for it is allocated."""
    saved = {name: entry.shape for name, entry in TensorFile(path).entries.items() if name.startswith("model.")}
    shapes = {f"model.{name}": tuple(tensor.shape) for name, tensor in empty_model(config).state_dict().items()}
    if saved != shapes:
        different = min(name for name in saved.keys() | shapes.keys() if saved.get(name) != shapes.get(name))
        raise _invalid(path, f"{different} does not match config.json")


def _optimizer_shapes(
    model: Transformer, optimizers: Sequence[Optimizer], present: Collection[str]
) -> dict[str, torch.Size]:
    """The shapes of the tensors that the optimizers keep for each parameter once it has had a gradient.

    An expert that no token was routed to had none: its tensors count only if they are ``present``.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    shapes: dict[str, torch.Size] = {}
    for i, optimizer in enumerate(optimizers):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, parameter in enumerate(parameters):
            own = {f"optimizer.{i}.{number}.{key}": parameter.shape for key in OPTIMIZER_KEYS[type(optimizer)]}
            own |= {name: torch.Size() for name in own if name.endswith(".step")}
            if not EXPERTS.search(names[id(parameter)]) or own.keys() & set(present):
                shapes |= own
    return shapes


def saved_step(path: Path) -> int:
    """Return the number of steps that the saved run had taken. Raises LlmcliError if the file does not state it."""
    step = TensorFile(path).metadata.get("step", "")
    if not re.fullmatch("[0-9]{1,15}", step):
        raise _invalid(path, "its number of steps is missing or wrong")
    return int(step)


def saved_corpus(path: Path) -> str | None:
    """Return the digest of the saved run's examples; None if the file does not hold it."""
    return TensorFile(path).metadata.get("corpus")


def _invalid(path: Path, reason: str) -> LlmcliError:
    return LlmcliError(f"{path}: not the state of this run: {reason}", "start again in another folder")


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, by their names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
