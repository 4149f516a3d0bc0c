"""The training loop: batch, loss, gradient, update, and a checkpoint now and then. It reports and prints nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.storage import checkpoint
from llmcli.train import state
from llmcli.train.metrics import Metrics
from llmcli.train.optimizer import learning_rate, optimizers, update
from llmcli.train.run import Run


def train(
    run: Run,
    out: Path,
    *,
    resume: bool = False,
    compiled: bool = False,
    checkpoint_seconds: float = 180.0,
    validate_every: int = 250,
) -> Generator[Metrics, None, None]:
    """Run the recipe, writing into ``out``; yields after every step.

    ``out`` holds the model in Hugging Face's layout and the run's state from the first checkpoint on.
    Closing the iterator (or Ctrl-C) writes a checkpoint too. Errors: a loss that is not finite.
    """
    recipe, model, objective = run.recipe, run.model, run.objective
    optimizing = optimizers(model, recipe)
    step = state.load_state(out / state.FILE, model, optimizing, objective.kept) if resume else 0
    precision = getattr(torch, recipe.precision)
    objective.prepare(model, torch.compile if compiled else _as_it_is)

    def save() -> None:
        checkpoint.save(model, out, run.described, dtype=torch.bfloat16)
        state.save_state(out / state.FILE, model, optimizing, objective.kept, step=step, corpus=run.corpus)

    saved, saved_at, whole = step, time.monotonic(), True
    try:
        while step < recipe.steps:
            began = time.monotonic()
            rate = learning_rate(recipe, step)
            with torch.autocast(model.device.type, precision, enabled=precision != torch.float32):
                loss = objective.loss(model, step)
            value = loss.item()
            if not math.isfinite(value):
                raise LlmcliError(
                    f"the loss is {value} at step {step}", "start again in another --out with a smaller --learning-rate"
                )
            torch.autograd.backward(loss)
            whole = False
            update(model, optimizing, rate)
            step, whole = step + 1, True
            metrics = Metrics(
                step=step,
                steps=recipe.steps,
                tokens=recipe.tokens_per_step * step,
                loss=value,
                learning_rate=rate,
                tokens_per_second=recipe.tokens_per_step / (time.monotonic() - began),
            )
            if step == recipe.steps or step % validate_every == 0:
                metrics = replace(metrics, **objective.score(model, precision))
            if time.monotonic() - saved_at > checkpoint_seconds:
                save()
                saved, saved_at = step, time.monotonic()
            yield metrics
    finally:
        # Interrupted within an update, the weights are of no step: the last checkpoint stands.
        if step > saved and whole:
            save()


def _as_it_is(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return function
