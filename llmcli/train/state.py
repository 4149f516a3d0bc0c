"""A run on disk: weights and optimizer state in fp32, as safetensors, so that it can go on where it stopped."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from llmcli.errors import LlmcliError
from llmcli.model.replacing import replacing
from llmcli.model.tensorfile import TensorFile
from llmcli.model.transformer import Transformer

FILE = "state.safetensors"


def save_state(path: Path, model: Transformer, optimizers: list[Optimizer], step: int) -> None:
    """Write all that decides the steps to come; the file appears whole or not at all."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for i, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{number}.{key}": torch.as_tensor(value) for key, value in state.items()}
    with replacing(path) as temporary:
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, temporary, metadata={"step": str(step)})


def load_state(path: Path, model: Transformer, optimizers: list[Optimizer]) -> int:
    """Restore what ``save_state`` wrote into a model and optimizers of the same recipe; returns the step."""
    if not path.is_file():
        raise LlmcliError(f"{path}: no such file", "nothing to resume here; start without --resume")
    step = int(TensorFile(path).metadata["step"])
    tensors = load_file(path)
    model.load_state_dict({k.removeprefix("model."): t for k, t in tensors.items() if k.startswith("model.")})
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimizer.{i}."):
                number, key = name.removeprefix(f"optimizer.{i}.").split(".")
                state.setdefault(int(number), {})[key] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return step
