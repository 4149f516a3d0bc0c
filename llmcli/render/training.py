"""A training run for the eye: a progress bar as it goes, then the loss curve in the terminal and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from llmcli.render.curve import Points, smooth, svg_curve, terminal_curve
from llmcli.render.generation import note
from llmcli.render.terminal import console, harmless, styled
from llmcli.train.metrics import Metrics

PLAIN_EVERY = 50  # steps a line where there is no terminal to draw a bar on; more in a long run,
MOST_LINES = 200  # so that no more lines than this come of it


class TrainingView:
    """A context manager: ``show`` each step on ``stream`` while inside. ``unit`` is that of the loss."""

    def __init__(self, stream: TextIO, unit: str) -> None:
        self._stream, self._unit = stream, unit
        self._bar: Progress | None = None
        self._told = 0  # the step of the last line about a validation
        if styled(stream):
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=20),
                TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:.0f} tokens/s "),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console(stream),
            )

    def __enter__(self) -> TrainingView:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def _worth_telling(self, step: Metrics) -> bool:
        """Whether a validation gets its line: of a run that makes very many not each, but the last."""
        return step.step == step.steps or step.step - self._told >= step.steps // MOST_LINES

    def show(self, step: Metrics) -> None:
        """Move the bar, or now and then write a line; a validation gets one too."""
        if self._bar:
            if not self._bar.task_ids:
                self._bar.add_task("", total=step.steps, completed=step.step - 1, loss=0.0, speed=0.0)
            self._bar.update(self._bar.task_ids[0], completed=step.step, loss=step.loss, speed=step.tokens_per_second)
        elif step.step % max(PLAIN_EVERY, step.steps // MOST_LINES) == 0 or step.step in (1, step.steps):
            left = (step.steps - step.step) * step.tokens / step.step / step.tokens_per_second
            note(
                f"step {step.step}/{step.steps}: loss {step.loss:.3f} {self._unit}, "
                f"{step.tokens_per_second:.0f} tokens/s, {left / 60:.0f} min left",
                self._stream,
            )
        if step.scored and self._worth_telling(step):
            self._told = step.step
            self._say(f"step {step.step}: validation {_score(step)}")

    def sample(self, text: str) -> None:
        """What the model wrote, marked as such."""
        self._say("\n".join(f"  | {line}" for line in harmless(text.strip()).splitlines()) or "  |")

    def _say(self, text: str) -> None:
        if self._bar:
            self._bar.console.print(Text(text))
        else:
            note(text, self._stream)


def _score(step: Metrics) -> str:
    if step.preferred is not None:
        return f"{step.preferred:.0%} of the pairs as preferred"
    return f"{step.nats_per_token:.4f} nats a token, {step.bits_per_byte:.4f} bits a byte"


def print_curve(history: Sequence[Metrics], unit: str, stream: TextIO) -> None:
    """The training loss, smoothed, from the first step to the last."""
    width = min(64, console(stream).width - 12) if styled(stream) else 64
    note(f"loss, {unit}:\n" + terminal_curve(smooth(_training(history)), width=width), stream)


def loss_svg(history: Sequence[Metrics], unit: str) -> str:
    """Training and validation loss over tokens, as the text of loss.svg."""
    series: list[tuple[str, str, Points]] = [("training (smoothed)", "#4477aa", smooth(_training(history)))]
    validation = [(m.tokens, m.nats_per_token) for m in history if m.nats_per_token is not None]
    if validation:
        series.append(("validation", "#cc3311", validation))
    return svg_curve("Loss", series, x_label="tokens trained on", y_label=unit)


def _training(history: Sequence[Metrics]) -> list[tuple[float, float]]:
    return [(m.tokens, m.loss) for m in history]
