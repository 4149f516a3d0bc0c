"""Many prompts for the eye: a bar as they are written, on a terminal, and a line when all is done."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TextIO

from llmcli.render.counted import counted
from llmcli.render.generation import note
from llmcli.render.terminal import console, styled

if TYPE_CHECKING:
    from rich.progress import Progress


class BatchView:
    """A context manager: ``show`` each token on ``stream`` while inside, and what is wrong with a line.

    ``kept`` counts the results that are in the file: in the order of the prompts, one that is done may have to wait.
    Of several processes (``rank`` is not None), the first one alone shows a bar, and each says which one it is.
    """

    def __init__(self, total: int, done: int, stream: TextIO, rank: int | None = None) -> None:
        self._stream, self._total = stream, total
        self._who = "" if rank is None else f"rank {rank}: "
        self._before = self._done = done
        self.tokens = self.broken = self.kept = 0
        self._began = time.monotonic()
        self._bar = _bar(stream, total, done) if styled(stream) and not rank else None

    def __enter__(self) -> BatchView:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        parts = [f"{self.kept} of {counted(self._total, 'prompt')} written"]
        parts += [f"{self._before} were there"] if self._before else []
        parts += [f"{self.broken} left out"] if self.broken else []
        left = self._total - self._before - self.kept - self.broken
        parts += [f"{left} to go: the same command goes on"] if left > 0 else []
        note(
            f"{self._who}{', '.join(parts)} | {counted(self.tokens, 'token')}, {self._rate():.0f} tokens/s",
            self._stream,
        )

    def show(self, *, done: bool, tokens: int = 1) -> None:
        """A token, or several, which may be the last of their text."""
        self.tokens += tokens
        self._done += done
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._done + self.broken, speed=self._rate())

    def wrong(self, where: str, reason: str) -> None:
        """A line that is left out."""
        self.broken += 1
        if self._bar:
            self._bar.stop()
        note(f"{where}: {reason}", self._stream)
        if self._bar:
            self._bar.start()

    def _rate(self) -> float:
        return self.tokens / max(time.monotonic() - self._began, 1e-9)


def _bar(stream: TextIO, total: int, done: int) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.completed}/{task.total} prompts"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[speed]:.0f} tokens/s "),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console(stream),
        transient=True,
    )
    bar.add_task("", total=total, completed=done, speed=0.0)
    return bar
