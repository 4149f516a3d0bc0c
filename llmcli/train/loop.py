"""The training loop: batch, loss, gradient, update, and a checkpoint now and then. It reports and prints nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.model import checkpoint
from llmcli.model.families import llama
from llmcli.model.transformer import Transformer
from llmcli.train import state
from llmcli.train.batches import Batches, encode
from llmcli.train.corpus import Corpus
from llmcli.train.metrics import Metrics
from llmcli.train.optimizer import initialise, learning_rate, optimizers, update
from llmcli.train.recipe import Recipe
from llmcli.train.validate import validate


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
) -> Generator[Metrics, None, None]:
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
        checkpoint.save(model, out, llama.describe(model.config), dtype=torch.bfloat16)

    saved, saved_at, whole = step, time.monotonic(), True
    try:
        while step < recipe.steps:
            began = time.monotonic()
            rate = learning_rate(recipe, step)
            inputs, targets = (ids.to(device) for ids in batches.at(step))
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                loss = loss_of(model, inputs, targets)
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
                score = validate(model, held_out, held_out_bytes, precision=precision)
                metrics = replace(metrics, nats_per_token=score.nats_per_token, bits_per_byte=score.bits_per_byte)
            if time.monotonic() - saved_at > checkpoint_seconds:
                save()
                saved, saved_at = step, time.monotonic()
            yield metrics
    finally:
        # Interrupted within an update, the weights are of no step: the last checkpoint stands.
        if step > saved and whole:
            save()


def next_token_loss(model: Transformer, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean surprisal of each next token, in nats: the one thing that pre-training minimises."""
    logits = model(inputs)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
