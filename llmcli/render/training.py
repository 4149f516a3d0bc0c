"""A training run for the eye: a progress bar as it goes, and the loss curve in the terminal and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llmcli.render.generation import note
from llmcli.render.terminal import console, styled
from llmcli.train.loop import Progress as Step

PLAIN_EVERY = 50  # steps a line where there is no terminal to draw a bar on


class TrainingView:
    """A context manager: ``show`` each step on ``stream`` while inside."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Progress | None = None
        if styled(stream):
            columns = (
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:.0f} tokens/s"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console(stream))

    def __enter__(self) -> TrainingView:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, step: Step) -> None:
        """Move the bar, or now and then write a line; a validation always gets its line."""
        if self._bar:
            if not self._bar.task_ids:
                self._bar.add_task("", total=step.steps, completed=step.step - 1, loss=step.loss, rate=0.0)
            self._bar.update(
                self._bar.task_ids[0], completed=step.step, loss=step.loss, rate=step.tokens_per_second
            )
        elif step.step % PLAIN_EVERY == 0 or step.step in (1, step.steps):
            left = (step.steps - step.step) * step.tokens / step.step / step.tokens_per_second
            note(
                f"step {step.step}/{step.steps}, loss {step.loss:.3f} nats a token, "
                f"{step.tokens_per_second:.0f} tokens/s, {left / 60:.0f} min left",
                self._stream,
            )
        if step.validation:
            note(
                f"step {step.step}: validation {step.validation.nats_per_token:.4f} nats a token, "
                f"{step.validation.bits_per_byte:.4f} bits a byte",
                self._bar.console.file if self._bar and False else self._stream,
            )


def metrics_line(step: Step) -> str:
    """One line of metrics.jsonl."""
    record: dict[str, Any] = {
        "step": step.step,
        "tokens": step.tokens,
        "loss": step.loss,
        "learning_rate": step.learning_rate,
        "tokens_per_second": step.tokens_per_second,
    }
    if step.validation:
        record |= {
            "validation_nats_per_token": step.validation.nats_per_token,
            "validation_bits_per_byte": step.validation.bits_per_byte,
        }
    return json.dumps(record)
