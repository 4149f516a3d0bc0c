"""The metrics of each training step, and the file metrics.jsonl that stores them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from llmcli.errors import LlmcliError
from llmcli.files.atomic import replacing
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
    """The metrics of a run on disk. A resumed run replaces the lines of the steps that it repeats."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self.history = _read(self._path)

    def append(self, metrics: Metrics) -> None:
        """Append the metrics of one step, and drop those of the same and later steps."""
        if self.history and self.history[-1].step >= metrics.step:
            self.history = [earlier for earlier in self.history if earlier.step < metrics.step]
            with replacing(self._path) as temporary:
                temporary.write_text("".join(_line(earlier) for earlier in self.history), encoding="utf-8")
        self.history.append(metrics)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(metrics))


def _line(metrics: Metrics) -> str:
    return to_line({key: value for key, value in asdict(metrics).items() if value is not None})


def _read(path: Path) -> list[Metrics]:
    """Return the metrics in the file, without an incomplete last line. Raises LlmcliError if the file is invalid."""
    if not path.is_file():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    try:
        return [Metrics(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise LlmcliError(f"{path}: not the metrics of a run: {error}", "move the file elsewhere") from error
