"""Progress bars on a terminal, and plain lines elsewhere: for loading, scoring, downloads, proofs and batches."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TextIO

from llmcli.files.sizes import readable
from llmcli.render.terminal import animated, console, note
from llmcli.render.text import counted, rate

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn
    from rich.status import Status

PATIENCE = 1.0  # seconds of work before a bar appears


class LoadingProgress:
    """A context manager that shows a bar on a terminal while a model loads. Call it with bytes read and total bytes.

    Work that takes less than PATIENCE seconds shows no bar.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Progress | None = None
        self._began = time.monotonic()

    def __enter__(self) -> LoadingProgress:
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None and animated(self._stream) and time.monotonic() - self._began > PATIENCE:
            self._bar = self._new_bar()
            self._bar.add_task("", total=total)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _new_bar(self) -> Progress:
        from rich.progress import DownloadColumn

        return _transient_bar(self._stream, "loading", DownloadColumn(binary_units=True))


class WritingProgress(LoadingProgress):
    """A context manager like LoadingProgress. Call it with the bytes written and their total."""

    def _new_bar(self) -> Progress:
        from rich.progress import DownloadColumn

        return _transient_bar(self._stream, "writing", DownloadColumn(binary_units=True))


class CountProgress(LoadingProgress):
    """A context manager like LoadingProgress. Call it with how many units, such as tokens, are done and their total.

    ``what`` is what happens to them, such as "scoring".
    """

    def __init__(self, stream: TextIO, what: str, unit: str) -> None:
        super().__init__(stream)
        self._what, self._unit = what, unit

    def _new_bar(self) -> Progress:
        from rich.progress import TextColumn

        return _transient_bar(self._stream, self._what, TextColumn(f"{{task.completed}}/{{task.total}} {self._unit}"))


def _transient_bar(stream: TextIO, what: str, amount: ProgressColumn) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn(what),
        BarColumn(bar_width=20),
        amount,
        TimeRemainingColumn(compact=True),
        console=console(stream),
        transient=True,
    )


class DownloadProgress:
    """A context manager that shows a download: a bar on a terminal, a line at the start and the end.

    Call it with bytes done and total bytes; if it is never called, it prints nothing.
    """

    def __init__(self, name: str, stream: TextIO) -> None:
        self._name = name
        self._stream = stream
        self._bar: Progress | None = None
        self._started = 0.0
        self._done = self._total = 0

    def __enter__(self) -> DownloadProgress:
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
            note(f"interrupted at {share}; run the same command again to resume", self._stream)
        else:
            note(f"stopped at {share}", self._stream)

    def _begin(self, done: int, total: int) -> None:
        resumed = done * 100 > total  # less than a hundredth is not worth mentioning
        size = f"{readable(total - done)} left of {readable(total)}" if resumed else readable(total)
        note(f"downloading {self._name}: {size}", self._stream)
        self._started = time.monotonic()
        if animated(self._stream):
            self._bar = _download_bar(self._stream)
            self._bar.add_task("", total=total, completed=done)
            self._bar.start()


def _download_bar(stream: TextIO) -> Progress:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    return Progress(
        BarColumn(bar_width=20),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console(stream),
    )


class VerifyProgress:
    """A context manager that shows on a terminal which proof is running. Call it with the proof's name."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._status: Status | None = None

    def __enter__(self) -> VerifyProgress:
        return self

    def __call__(self, name: str) -> None:
        self.pause()
        if animated(self._stream):
            self._status = console(self._stream).status(name)
            self._status.start()

    def pause(self) -> None:
        """Hide the name until the next proof, so that another bar can be shown."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def __exit__(self, *_: object) -> None:
        self.pause()


class BatchProgress:
    """A context manager that shows a batch of prompts: a bar on a terminal, a summary line at the end.

    ``kept``, which the caller counts, is the number of results written to the file: results are written in the order
    of the prompts, so one that is done may have to wait. Among several processes (``rank`` is not None) only the first
    shows a bar, and each line begins with the rank.
    """

    def __init__(self, total: int, done: int, stream: TextIO, rank: int | None = None) -> None:
        self._stream, self._total = stream, total
        self._prefix = "" if rank is None else f"rank {rank}: "
        self._before = self._done = done
        self.tokens = self.broken = self.kept = 0
        self._began = time.monotonic()
        self._bar = _batch_bar(stream, total, done) if animated(stream) and not rank else None

    def __enter__(self) -> BatchProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        parts = [f"{self.kept} of {counted(self._total, 'prompt')} written"]
        parts += [f"{self._before} already done"] if self._before else []
        parts += [f"{self.broken} skipped"] if self.broken else []
        left = self._total - self._before - self.kept - self.broken
        parts += [f"{left} left: run the same command again to continue"] if left > 0 else []
        note(
            f"{self._prefix}{', '.join(parts)} | {counted(self.tokens, 'token')}, {rate(self._rate())} tokens/s",
            self._stream,
        )

    def show(self, *, done: bool, tokens: int = 1) -> None:
        """Count generated tokens; ``done`` if they end their text."""
        self.tokens += tokens
        self._done += done
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._done + self.broken, speed=rate(self._rate()))

    def wrong(self, where: str, reason: str) -> None:
        """Count a line of the input that is skipped, and print why."""
        self.broken += 1
        if self._bar:
            self._bar.stop()
        note(f"{where}: {reason}", self._stream)
        if self._bar:
            self._bar.start()

    def _rate(self) -> float:
        return self.tokens / max(time.monotonic() - self._began, 1e-9)


def _batch_bar(stream: TextIO, total: int, done: int) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.completed}/{task.total} prompts"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[speed]} tokens/s "),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console(stream),
        transient=True,
    )
    bar.add_task("", total=total, completed=done, speed=rate(0.0))
    return bar
