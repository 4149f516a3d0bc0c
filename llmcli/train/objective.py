"""The loss that a run minimizes, and the validation on held-out examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli.errors import usage_error
from llmcli.generation.score import surprisals
from llmcli.model.transformer import Transformer
from llmcli.train.batches import Batches, Encoded

Compile = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]


class Objective(Protocol):
    """A loss. ``kept`` are the tensors that a checkpoint must contain in addition to the weights."""

    kept: dict[str, Tensor]

    @property
    def kept_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the tensors that ``kept`` has after ``prepare``."""

    def prepare(self, model: Transformer, compile: Compile) -> None:
        """Prepare for the first step, or for the next one after resuming; ``compile`` may speed up functions."""

    def loss(self, model: Transformer, step: int) -> Tensor:
        """Return the loss of the step's batch, a scalar."""

    def score(self, model: Transformer, precision: torch.dtype) -> dict[str, Any]:
        """Return the fields of ``Metrics`` that the held-out examples give."""


class NextToken:
    """The mean surprisal in nats of each token to learn: for pre-training, and for fine-tuning on replies.

    ``held_out_bytes`` is the size of the text to predict in ``held_out``.
    """

    def __init__(self, batches: Batches, held_out: Sequence[Encoded], held_out_bytes: int) -> None:
        self.kept: dict[str, Tensor] = {}
        self._batches, self._held_out, self._bytes = batches, held_out, held_out_bytes
        self._loss: Callable[..., Tensor] = next_token_loss

    @property
    def kept_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {}

    def prepare(self, model: Transformer, compile: Compile) -> None:
        self._loss = compile(next_token_loss)

    def loss(self, model: Transformer, step: int) -> Tensor:
        inputs, targets = (ids.to(model.device) for ids in self._batches.at(step))
        return self._loss(model, inputs, targets)

    def score(self, model: Transformer, precision: torch.dtype) -> dict[str, Any]:
        found = validate(model, self._held_out, self._bytes, precision=precision)
        return {"nats_per_token": found.nats_per_token, "bits_per_byte": found.bits_per_byte}


def next_token_loss(model: Transformer, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean surprisal in nats of the targets that are not ``IGNORED``."""
    logits = model(inputs)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


@dataclass(frozen=True)
class Validation:
    """How well a model predicts a text. ``bits_per_byte`` does not depend on the tokenizer.

    It divides the bits of all tokens, including EOS, by the bytes of the text.
    """

    nats_per_token: float
    bits_per_byte: float

    def more_perplexity(self, before: Validation) -> float:
        """Return the relative increase of the perplexity since ``before``."""
        return math.expm1(self.nats_per_token - before.nats_per_token)


def validate(
    model: Transformer, examples: Sequence[Encoded], bytes_of_text: int, *, precision: torch.dtype
) -> Validation:
    """Score the tokens to learn of each example, computing in ``precision``.

    Raises LlmcliError if there are no such tokens.
    """
    nats, tokens = 0.0, 0
    with torch.autocast(model.device.type, precision, enabled=precision != torch.float32):
        for example in examples:
            if len(example.ids) <= example.first:
                continue  # a single token has no context
            scores = surprisals(model, example.ids)[example.first - 1 :]
            nats += float(scores.sum(dtype=torch.float64))
            tokens += len(scores)
    if not tokens:
        raise usage_error("the validation text has no token to predict", "use a longer text")
    return Validation(nats / tokens, nats / math.log(2) / bytes_of_text)
