"""The training loop: batch, loss, gradient, update, and a checkpoint now and then. It reports and prints nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.model import checkpoint
from llmcli.model.transformer import Transformer
from llmcli.train import state
from llmcli.train.batches import Batches, encode
from llmcli.train.optimizer import initialise, learning_rate, optimizers, update
from llmcli.train.recipe import Recipe
from llmcli.train.validate import Validation, validate


@dataclass(frozen=True)
class Progress:
    """One step that was taken; ``loss`` is in nats per token. ``validation`` is there where it was measured."""

    step: int  # steps taken, this one included
    steps: int  # in all
    tokens: int  # trained on so far
    loss: float
    learning_rate: float
    tokens_per_second: float  # of this step, all but validation
    validation: Validation | None


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents to validate on, never the same."""

    train: list[str]
    valid: list[str]


def train(
    recipe: Recipe,
    corpus: Corpus,
    tokenizer: Tokenizer,
    out: Path,
    *,
    device: torch.device,
    resume: bool = False,
    compiled: bool = False,
    checkpoint_seconds: float = 180.0,
    validate_every: int = 250,
) -> Iterator[Progress]:
    """Run the recipe, writing into ``out``; yields after every step.

    ``out`` holds the model in Hugging Face's layout and the run's state from the first checkpoint on.
    Closing the iterator (or Ctrl-C) writes a checkpoint too. Errors: a loss that is not finite.
    """
    batches = Batches(
        encode(tokenizer, corpus.train),
        context=recipe.context,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
    )
    held_out = encode(tokenizer, corpus.valid)
    held_out_bytes = sum(len(text.encode()) for text in corpus.valid)

    model = Transformer(recipe.model_config(tokenizer.get_vocab_size())).to(device)
    initialise(model, recipe.seed)
    optimizing = optimizers(model, recipe)
    step = state.load_state(out / state.FILE, model, optimizing) if resume else 0
    precision = getattr(torch, recipe.precision)
    loss_of = torch.compile(next_token_loss) if compiled else next_token_loss

    def save() -> None:
        state.save_state(out / state.FILE, model, optimizing, step)
        checkpoint.save(model, out, dtype=torch.bfloat16)

    saved, saved_at = step, time.monotonic()
    try:
        while step < recipe.steps:
            began = time.monotonic()
            rate = learning_rate(recipe, step)
            inputs, targets = (ids.to(device) for ids in batches.at(step))
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                loss = loss_of(model, inputs, targets)
            value = loss.item()
            if not math.isfinite(value):
                raise LlmcliError(f"the loss is {value} at step {step}", "start again with a smaller --learning-rate")
            torch.autograd.backward(loss)
            update(model, optimizing, rate)
            step += 1
            seconds = time.monotonic() - began
            measured = None
            if step == recipe.steps or step % validate_every == 0:
                measured = validate(model, held_out, held_out_bytes, precision=precision)
            if time.monotonic() - saved_at > checkpoint_seconds:
                save()
                saved, saved_at = step, time.monotonic()
            done = recipe.tokens_per_step * step
            yield Progress(step, recipe.steps, done, value, rate, recipe.tokens_per_step / seconds, measured)
    finally:
        if step > saved:
            save()


def next_token_loss(model: Transformer, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean surprisal of each next token, in nats: the one thing that pre-training minimises."""
    logits = model(inputs)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
