"""A bar for models that take long to read: nothing for those that are there at once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TextIO

from llmcli.render.terminal import console, styled

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE = 1.0  # seconds before the bar appears


class LoadingView:
    """A context manager that, called with bytes read and bytes in all, shows them on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Progress | None = None
        self._began = time.monotonic()

    def __enter__(self) -> LoadingView:
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None and styled(self._stream) and time.monotonic() - self._began > PATIENCE:
            self._bar = _bar(self._stream)
            self._bar.add_task("loading", total=total)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _bar(stream: TextIO) -> Progress:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(compact=True),
        console=console(stream),
        transient=True,
    )
