"""Counters of the server in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from llmcli.serve.models import Served
from llmcli.serve.scheduler import Scheduler

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BY_MODEL: dict[str, tuple[str, Callable[[Scheduler], int]]] = {
    "prompt_tokens_total": ("counter", lambda scheduler: scheduler.counts.prompt_tokens),
    "cached_prompt_tokens_total": ("counter", lambda scheduler: scheduler.counts.cached_tokens),
    "generated_tokens_total": ("counter", lambda scheduler: scheduler.counts.generated_tokens),
    "running_texts": ("gauge", lambda scheduler: scheduler.running),
    "waiting_requests": ("gauge", lambda scheduler: scheduler.waiting),
    "prefix_bytes": ("gauge", lambda scheduler: scheduler.prefixes.nbytes),
}


class Metrics:
    """Requests by path and status, the time that they took, and what the scheduler of each model counts."""

    def __init__(self, models: Mapping[str, Served]) -> None:
        self.models = models
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds = 0.0
        self.first_seconds, self.firsts = 0.0, 0

    def first_token(self, seconds: float) -> None:
        """Count the time from a request to its first token."""
        self.first_seconds += seconds
        self.firsts += 1

    def text(self) -> str:
        """All numbers, each with its type."""
        lines = ["# TYPE llmcli_requests_total counter"]
        lines += [
            f'llmcli_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self.requests.items())
        ]
        numbers = {
            "llmcli_request_seconds_total": (self.seconds, "counter"),
            "llmcli_first_token_seconds_sum": (self.first_seconds, "counter"),
            "llmcli_first_token_seconds_count": (self.firsts, "counter"),
        }
        for name, (value, kind) in numbers.items():
            lines += [f"# TYPE {name} {kind}", f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"]
        return "\n".join([*lines, *self._by_model()]) + "\n"

    def _by_model(self) -> list[str]:
        """What the schedulers count, with the model as a label."""
        lines = []
        for name, (kind, of) in BY_MODEL.items():
            lines.append(f"# TYPE llmcli_{name} {kind}")
            lines += [
                f'llmcli_{name}{{model="{quoted(model)}"}} {of(served.scheduler)}'
                for model, served in self.models.items()
            ]
        return lines


def quoted(label: str) -> str:
    """The value of a label, as the format writes it."""
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
