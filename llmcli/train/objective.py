"""What a run minimises, and how well a model does at it on examples that were held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli.model.transformer import Transformer
from llmcli.train.batches import Batches, Encoded
from llmcli.train.validate import validate

Compile = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]


class Objective(Protocol):
    """``kept`` is what must be saved with a run, beside the weights, for it to go on."""

    kept: dict[str, Tensor]

    def prepare(self, model: Transformer, compile: Compile) -> None:
        """See the model as it is before the first step, or as it was left; ``compile`` may make functions faster."""

    def loss(self, model: Transformer, step: int) -> Tensor:
        """What is to become smaller, a single number, of the step's batch."""

    def score(self, model: Transformer, precision: torch.dtype) -> dict[str, Any]:
        """Fields of ``Metrics``, of the examples held out."""


class NextToken:
    """The mean surprisal of each token that is to be learnt, in nats: pre-training, and fine-tuning on replies.

    ``held_out_bytes`` are those of the text to be learnt in ``held_out``.
    """

    def __init__(self, batches: Batches, held_out: Sequence[Encoded], held_out_bytes: int) -> None:
        self.kept: dict[str, Tensor] = {}
        self._batches, self._held_out, self._bytes = batches, held_out, held_out_bytes
        self._loss: Callable[..., Tensor] = next_token_loss

    def prepare(self, model: Transformer, compile: Compile) -> None:
        self._loss = compile(next_token_loss)

    def loss(self, model: Transformer, step: int) -> Tensor:
        inputs, targets = (ids.to(model.device) for ids in self._batches.at(step))
        return self._loss(model, inputs, targets)

    def score(self, model: Transformer, precision: torch.dtype) -> dict[str, Any]:
        found = validate(model, self._held_out, self._bytes, precision=precision)
        return {"nats_per_token": found.nats_per_token, "bits_per_byte": found.bits_per_byte}


def next_token_loss(model: Transformer, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean surprisal of each next token that is not ``IGNORED``, in nats."""
    logits = model(inputs)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
