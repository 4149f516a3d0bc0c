"""What a run reports after each step, and metrics.jsonl, where the reports are kept."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from llmcli.errors import LlmcliError
from llmcli.files.atomic import replacing

FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Metrics:
    """One step that was taken. ``loss`` and ``nats_per_token`` are natural logarithms' units.

    ``nats_per_token`` and ``bits_per_byte`` are of the validation text, where it was scored after this step, and
    ``preferred`` (dpo) is the share of the validation pairs of which the better reply has gained more.
    """

    step: int  # steps taken, this one included
    steps: int  # in all
    tokens: int  # trained on so far
    loss: float
    learning_rate: float
    tokens_per_second: float  # of this step, without validation
    nats_per_token: float | None = None
    bits_per_byte: float | None = None
    preferred: float | None = None

    @property
    def scored(self) -> bool:
        """Whether the validation examples were scored after this step."""
        return self.nats_per_token is not None or self.preferred is not None


class MetricsFile:
    """The history of a run on disk; what an earlier attempt wrote beyond the step it resumes from is dropped."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self.history = _read(self._path)

    def append(self, metrics: Metrics) -> None:
        """Add one step's line, whole."""
        if self.history and self.history[-1].step >= metrics.step:
            self.history = [earlier for earlier in self.history if earlier.step < metrics.step]
            with replacing(self._path) as temporary:
                temporary.write_text("".join(_line(earlier) for earlier in self.history), encoding="utf-8")
        self.history.append(metrics)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(metrics))


def _line(metrics: Metrics) -> str:
    return json.dumps({key: value for key, value in asdict(metrics).items() if value is not None}) + "\n"


def _read(path: Path) -> list[Metrics]:
    """What the file holds; a last line that was cut off by a kill does not count."""
    if not path.is_file():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    try:
        return [Metrics(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise LlmcliError(f"{path}: not the metrics of a run: {error}", "move the file away to go on") from error
