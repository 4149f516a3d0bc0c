"""``train``: a progress bar, then the loss curve in the terminal and as an SVG picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from html import escape
from typing import TextIO

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from llmcli.render.terminal import animated, console, drawn, note
from llmcli.render.text import escape_controls, rate
from llmcli.train.metrics import Metrics

Points = Sequence[tuple[float, float]]  # (x, y), x rising

LINE_EVERY = 50  # steps between two lines where there is no bar; more if a run would print over MAX_LINES
MAX_LINES = 200
MIN_TIMED = 5  # steps that the time left is estimated from, at least
_EIGHTHS = " ▁▂▃▄▅▆▇█"  # a character filled to 0, 1, ... 8 eighths


class TrainingProgress:
    """A context manager that shows each step of a run: a bar on a terminal, some lines elsewhere.

    ``unit`` is the unit of the loss, such as "nats per token". ``clock`` returns a time in seconds.
    """

    def __init__(self, stream: TextIO, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._unit, self._clock = stream, unit, clock
        self._first: tuple[int, float] | None = None  # the first step shown, and when
        self._bar: Progress | None = None
        self._last_validation = 0  # the step of the last line about a validation
        if animated(stream):
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=20),
                TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]} tokens/s "),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=console(stream),
            )

    def __enter__(self) -> TrainingProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def _worth_a_line(self, step: Metrics) -> bool:
        """Return whether a validation gets a line: the last one does, and at most MAX_LINES others."""
        return step.step == step.steps or step.step - self._last_validation >= step.steps // MAX_LINES

    def show(self, step: Metrics) -> None:
        """Update the bar, or print a line now and then; a validation gets a line, too."""
        left = self._left(step)
        if self._bar:
            if not self._bar.task_ids:
                self._bar.add_task("", total=step.steps, completed=step.step - 1, loss=0.0, speed=rate(0.0), left="")
            speed = rate(step.tokens_per_second)
            self._bar.update(self._bar.task_ids[0], completed=step.step, loss=step.loss, speed=speed, left=left)
        elif step.step % max(LINE_EVERY, step.steps // MAX_LINES) == 0 or step.step in (1, step.steps):
            note(
                f"step {step.step}/{step.steps}: loss {step.loss:.3f} {self._unit}, "
                f"{rate(step.tokens_per_second)} tokens/s" + (f", {left}" if left else ""),
                self._stream,
            )
        if step.scored and self._worth_a_line(step):
            self._last_validation = step.step
            self._print(f"step {step.step}: validation {_score(step)}")

    def _left(self, step: Metrics) -> str:
        """Return the time left, from the mean time of all steps after the first, which is slow; at first "".

        The mean includes validations and samples, and one slow step hardly changes it.
        """
        now = self._clock()
        if self._first is None:
            self._first = step.step, now
        first, began = self._first
        if step.step - first < MIN_TIMED:
            return ""
        seconds = round((now - began) / (step.step - first) * (step.steps - step.step))
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}:{minutes:02}:{seconds % 60:02} left"

    def sample(self, prompt: str, text: str, *, reply: bool) -> None:
        """Print a prompt and what the model wrote: on the same line, or as a reply on the next. Bars mark the lines."""
        shown = f"> {prompt}\n{text.strip()}" if reply else prompt + text
        self._print("\n".join(f"  | {line}" for line in escape_controls(shown.strip()).splitlines()))

    def _print(self, text: str) -> None:
        if self._bar:
            self._bar.console.print(Text(text))
        else:
            note(text, self._stream)


def _score(step: Metrics) -> str:
    if step.preferred is not None:
        return f"{step.preferred:.0%} of the pairs ranked as preferred"
    return f"{step.nats_per_token:.4f} nats per token, {step.bits_per_byte:.4f} bits per byte"


def print_loss_curve(history: Sequence[Metrics], unit: str, stream: TextIO) -> None:
    """Print the smoothed training loss, from the first step to the last, as characters."""
    width = min(64, console(stream).width - 12) if drawn(stream) else 64
    note(f"loss, {unit}:\n" + terminal_curve(smooth(_training(history)), width=width), stream)


def loss_svg(history: Sequence[Metrics], unit: str) -> str:
    """Return an SVG picture of the training and validation loss over the tokens trained on."""
    series: list[tuple[str, str, Points]] = [("training (smoothed)", "#4477aa", smooth(_training(history)))]
    validation = [(m.tokens, m.nats_per_token) for m in history if m.nats_per_token is not None]
    if validation:
        series.append(("validation", "#cc3311", validation))
    return svg_curve("Loss", series, x_label="tokens trained on", y_label=unit)


def _training(history: Sequence[Metrics]) -> list[tuple[float, float]]:
    return [(m.tokens, m.loss) for m in history]


def smooth(points: Points, share: float = 0.02) -> list[tuple[float, float]]:
    """Return the exponential moving average of y over about ``share`` of the points."""
    keep = 1 - 1 / max(1.0, share * len(points))
    smoothed: list[tuple[float, float]] = []
    for x, y in points:
        smoothed.append((x, y if not smoothed else keep * smoothed[-1][1] + (1 - keep) * y))
    return smoothed


def terminal_curve(points: Points, *, width: int = 64, height: int = 8) -> str:
    """Return a bar chart of y over x in characters: ``height`` lines of ``width`` columns, with y's limits."""
    low, high = min(y for _, y in points), max(y for _, y in points)
    last_x = max(x for x, _ in points)
    columns: list[list[float]] = [[] for _ in range(width)]
    for x, y in points:
        columns[min(width - 1, int(x / last_x * width))].append(y)
    level, eighths = high, []
    for column in columns:
        level = sum(column) / len(column) if column else level
        eighths.append(round((level - low) / (high - low or 1.0) * height * 8))
    lines = []
    for row in range(height - 1, -1, -1):
        label = f"{high:8.3f}" if row == height - 1 else f"{low:8.3f}" if row == 0 else " " * 8
        lines.append(label + " ┤" + "".join(_EIGHTHS[max(0, min(8, value - row * 8))] for value in eighths).rstrip())
    return "\n".join(lines)


def _short(count: float) -> str:
    """Return a count with three digits: "12.4M", "300k", "7"."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.3g}"


def svg_curve(title: str, series: Sequence[tuple[str, str, Points]], *, x_label: str, y_label: str) -> str:
    """Return an SVG picture of lines over common axes; a line is (name, color, points)."""
    width, height, left, bottom = 720, 400, 60, 50
    xs = [x for _, _, points in series for x, _ in points]
    ys = [y for _, _, points in series for _, y in points]
    x_high, y_low, y_high = max(xs), min(ys), max(ys)

    def place(x: float, y: float) -> str:
        across = left + x / (x_high or 1.0) * (width - left - 20)
        down = 40 + (y_high - y) / (y_high - y_low or 1.0) * (height - bottom - 40)
        return f"{across:.1f},{down:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="24" font-size="16">{escape(title)}</text>',
        f'<text x="{width / 2:.0f}" y="{height - 10}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text x="16" y="{height / 2:.0f}" transform="rotate(-90 16 {height / 2:.0f})" '
        f'text-anchor="middle">{escape(y_label)}</text>',
    ]
    for n in range(5):
        x, y = x_high * n / 4, y_low + (y_high - y_low) * n / 4
        at_x, at_y = place(x, y_low).split(",")[0], place(0, y).split(",")[1]
        parts += [
            f'<line x1="{left}" y1="{at_y}" x2="{width - 20}" y2="{at_y}" stroke="#ddd"/>',
            f'<text x="{left - 6}" y="{at_y}" dy="4" text-anchor="end">{y:.2f}</text>',
            f'<text x="{at_x}" y="{height - bottom + 18}" text-anchor="middle">{_short(x)}</text>',
        ]
    for n, (name, color, points) in enumerate(series):
        path = " ".join(place(x, y) for x, y in points)
        parts += [
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>',
            f'<text x="{width - 24}" y="{58 + 16 * n}" text-anchor="end" fill="{color}">{escape(name)}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
