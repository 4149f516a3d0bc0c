"""The metrics of each training step, and the file metrics.jsonl that stores them."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from llmcli.errors import LlmcliError
from llmcli.files.atomic import append_line, write_error
from llmcli.files.lock import lock_for_writing
from llmcli.files.ndjson import to_line

FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Metrics:
    """The metrics of one training step. ``loss`` is in nats per token, for dpo in nats per pair.

    ``nats_per_token`` and ``bits_per_byte`` are the loss on the validation text, if this step was followed by a
    validation. ``preferred`` (dpo) is the fraction of the validation pairs whose chosen reply gained more probability.
    """

    step: int  # steps taken, including this one
    steps: int  # of the whole run
    tokens: int  # trained on so far
    loss: float
    learning_rate: float
    tokens_per_second: float  # of this step, without validation
    nats_per_token: float | None = None
    bits_per_byte: float | None = None
    preferred: float | None = None

    @property
    def scored(self) -> bool:
        """Whether this step was followed by a validation."""
        return self.nats_per_token is not None or self.preferred is not None


class MetricsFile:
    """The metrics of a run on disk: a context manager that locks them against other processes.

    A resumed run replaces the lines of the steps that it repeats. Raises LlmcliError if another process has locked the
    file, or if it cannot be written or is invalid.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._file: BinaryIO | None = None
        self._ends: list[int] = []  # where each line ends, in bytes
        self.history: list[Metrics] = []

    def __enter__(self) -> MetricsFile:
        if self._path.exists():
            self.open()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def open(self) -> None:
        """Open the file, which is created if it does not exist."""
        if self._file is not None:
            return
        try:
            self._file = self._path.open("a+b", buffering=0)
            lock_for_writing(self._file, self._path)
            self._read(self._path.read_bytes())
        except OSError as error:
            raise write_error(self._path, error) from error

    def append(self, metrics: Metrics) -> None:
        """Append the metrics of one step, and drop those of the same and later steps."""
        self.open()
        assert self._file is not None
        while self.history and self.history[-1].step >= metrics.step:
            self.history.pop()
            self._ends.pop()
        line, end = _line(metrics), self._ends[-1] if self._ends else 0
        try:
            self._file.truncate(end)
        except OSError as error:
            raise write_error(self._path, error) from error
        append_line(self._file, line, self._path)
        self.history.append(metrics)
        self._ends.append(end + len(line))

    def _read(self, content: bytes) -> None:
        """Load the metrics in the file, without an incomplete last line."""
        lines = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
        try:
            self.history = [Metrics(**json.loads(line)) for line in lines]
        except (ValueError, TypeError) as error:
            raise LlmcliError(f"{self._path}: not the metrics of a run: {error}", "move the file elsewhere") from error
        self._ends = list(itertools.accumulate(map(len, lines)))


def _line(metrics: Metrics) -> bytes:
    return to_line({key: value for key, value in asdict(metrics).items() if value is not None}).encode()
