"""A run on disk: weights and optimizer state in fp32, as safetensors, so that it can go on where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from llmcli.errors import LlmcliError
from llmcli.files.atomic import replacing
from llmcli.files.safetensors import TensorFile
from llmcli.model.transformer import Transformer

FILE = "state.safetensors"


def save_state(
    path: Path, model: Transformer, optimizers: list[Optimizer], kept: Mapping[str, Tensor], *, step: int, corpus: str
) -> None:
    """Write all that decides the steps to come; the file appears whole or not at all.

    ``kept`` is the objective's, ``corpus`` the digest of what is learnt.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"kept.{name}": tensor for name, tensor in kept.items()}
    for i, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{number}.{key}": torch.as_tensor(value) for key, value in state.items()}
    with replacing(path) as temporary:
        told = {"step": str(step), "corpus": corpus}
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, temporary, metadata=told)


def load_state(path: Path, model: Transformer, optimizers: list[Optimizer], kept: dict[str, Tensor]) -> int:
    """Restore what ``save_state`` wrote, of a run with the same recipe; returns the step."""
    if not path.is_file():
        raise LlmcliError(f"{path}: no such file", "nothing to resume here; start without --resume")
    step = saved_step(path)
    tensors = load_file(path)
    model.load_state_dict(_below("model.", tensors))
    kept.update(_below("kept.", tensors))
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below(f"optimizer.{i}.", tensors).items():
            number, key = name.split(".")
            state.setdefault(int(number), {})[key] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return step


def saved_step(path: Path) -> int:
    """How many steps had been taken when the state was saved."""
    return int(TensorFile(path).metadata["step"])


def saved_corpus(path: Path) -> str | None:
    """The digest of the corpus of the run; None where that is not told."""
    return TensorFile(path).metadata.get("corpus")


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
