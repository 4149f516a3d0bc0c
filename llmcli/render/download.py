"""A download for the eye: one bar for the whole model on a terminal, a line at either end elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TextIO

from llmcli.files.sizes import readable
from llmcli.render.generation import note
from llmcli.render.terminal import console, styled

if TYPE_CHECKING:
    from rich.progress import Progress


class DownloadView:
    """A context manager that, called with bytes done and in all, shows them; never called, it is silent."""

    def __init__(self, name: str, stream: TextIO) -> None:
        self._name = name
        self._stream = stream
        self._bar: Progress | None = None
        self._started = 0.0
        self._done = self._total = 0

    def __enter__(self) -> DownloadView:
        return self

    def __call__(self, done: int, total: int) -> None:
        if not self._total:
            self._begin(done, total)
        self._done, self._total = done, total
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=done)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._total:
            return
        if self._bar:
            self._bar.stop()
        share = f"{readable(self._done)} of {readable(self._total)}"
        if kind is None:
            note(f"downloaded {self._name} in {time.monotonic() - self._started:.0f} s", self._stream)
        elif issubclass(kind, KeyboardInterrupt):
            note(f"interrupted at {share}; the same command goes on from there", self._stream)
        else:
            note(f"stopped at {share}", self._stream)

    def _begin(self, done: int, total: int) -> None:
        resumed = done * 100 > total  # less than a hundredth is not worth a word
        size = f"{readable(total - done)}, the rest of {readable(total)}" if resumed else readable(total)
        note(f"downloading {self._name}: {size}", self._stream)
        self._started = time.monotonic()
        if styled(self._stream):
            self._bar = _bar(self._stream)
            self._bar.add_task("", total=total, completed=done)
            self._bar.start()


def _bar(stream: TextIO) -> Progress:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    return Progress(
        BarColumn(bar_width=20),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console(stream),
    )
