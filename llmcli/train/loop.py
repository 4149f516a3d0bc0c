"""The training loop, and samples of what the model generates during it. Neither prints anything."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.generation.filters import Temperature
from llmcli.generation.generate import Generation
from llmcli.generation.generation_config import read_defaults
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler
from llmcli.storage import checkpoint
from llmcli.text.chat_template import Message
from llmcli.train import state
from llmcli.train.metrics import Metrics
from llmcli.train.optimizer import create_optimizers, learning_rate, update
from llmcli.train.run import TrainingRun

TEMPERATURE = 0.8  # of samples


def train(
    run: TrainingRun,
    out: Path,
    *,
    resume: bool = False,
    compiled: bool = False,
    checkpoint_seconds: float = 180.0,
    validate_every: int = 250,
) -> Generator[Metrics, None, None]:
    """Train as the recipe says and yield the metrics of every step.

    A checkpoint in ``out``, at most every ``checkpoint_seconds``, holds the model in Hugging Face's layout and the
    state of the run. Closing the iterator saves one too, as does Ctrl-C. ``validate_every`` is in steps; the last
    step is always followed by a validation. Raises LlmcliError if the loss is not finite.
    """
    recipe, model, objective = run.recipe, run.model, run.objective
    optimizers = create_optimizers(model, recipe)
    step = state.load_state(out / state.FILE, model, optimizers, objective) if resume else 0
    precision = getattr(torch, recipe.precision)
    objective.prepare(model, torch.compile if compiled else _uncompiled)

    def save() -> None:
        checkpoint.save(model, out, run.config_json, dtype=torch.bfloat16)
        state.save_state(out / state.FILE, model, optimizers, objective.kept, step=step, corpus=run.corpus)

    saved, saved_at, complete = step, time.monotonic(), True
    try:
        while step < recipe.steps:
            began = time.monotonic()
            rate = learning_rate(recipe, step)
            with torch.autocast(model.device.type, precision, enabled=precision != torch.float32):
                loss = objective.loss(model, step)
            value = loss.item()
            if not math.isfinite(value):
                raise LlmcliError(f"the loss is {value} at step {step}", kind="loss-not-finite")
            torch.autograd.backward(loss)
            with uninterrupted():
                complete = False
                update(model, optimizers, rate)
                step, complete = step + 1, True
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
            yield metrics  # before the checkpoint: a resumed run repeats metrics that were stored, and misses none
            if time.monotonic() - saved_at > checkpoint_seconds:
                save()
                saved, saved_at = step, time.monotonic()
    finally:
        # After a failed update, some weights are of one step and some of the next: keep the last checkpoint.
        if step > saved and complete:
            save()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C, and other signals that Python handles, until the block ends. Only the main thread gets them."""
    received: list[int] = []
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    in_main = threading.current_thread() is threading.main_thread()
    handlers = {n: handler for n in numbers if callable(handler := signal.getsignal(n))} if in_main else {}
    for number in handlers:
        signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in received[:1]:
        handlers[number](number, None)


def _uncompiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return function


def sample(run: TrainingRun, out: Path, prompt: str, *, max_new_tokens: int, seed: int) -> str:
    """Return a continuation of ``prompt``, or a reply to it if the run trains on replies.

    "…" marks a text that ``max_new_tokens`` ended. A prompt longer than the context is truncated.
    """
    encoder, model = run.encoder, run.model
    if encoder.form is None:
        ids = encoder.tokenizer.encode(prompt)
    else:
        ids = encoder.form.encode(encoder.form.render([Message("user", prompt)]))
    loaded = LoadedModel(out.name, out, model, encoder.tokenizer, read_defaults(out))
    ids = loaded.readable(ids)[: model.config.max_position_embeddings - 1]
    sampler = Sampler([Temperature(TEMPERATURE)], seed=seed)
    generation = Generation(loaded, ids, sampler=sampler, max_new_tokens=max_new_tokens)
    with torch.no_grad():
        for _ in generation:
            pass
    return generation.text + ("…" if generation.finish == "length" else "")
