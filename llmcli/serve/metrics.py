"""Counters of the server in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from llmcli.serve.models import Served
from llmcli.serve.scheduler import Scheduler

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# By name without the prefix: type, meaning, and value.
BY_MODEL: dict[str, tuple[str, str, Callable[[Scheduler], int]]] = {
    "prompt_tokens_total": ("counter", "Tokens of prompts.", lambda scheduler: scheduler.counts.prompt_tokens),
    "cached_prompt_tokens_total": (
        "counter",
        "Tokens of prompts that were in the prefix cache.",
        lambda scheduler: scheduler.counts.cached_tokens,
    ),
    "generated_tokens_total": ("counter", "Generated tokens.", lambda scheduler: scheduler.counts.generated_tokens),
    "running_texts": ("gauge", "Texts that are being generated.", lambda scheduler: scheduler.running),
    "waiting_requests": ("gauge", "Requests in the queue.", lambda scheduler: scheduler.waiting),
    "prefix_cache_bytes": ("gauge", "Size of the prefix cache.", lambda scheduler: scheduler.prefixes.nbytes),
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
        """All numbers, each with its type and meaning."""
        requests = {
            f'{{path="{path}",status="{status}"}}': str(count)
            for (path, status), count in sorted(self.requests.items())
        }
        first = {"_sum": f"{self.first_seconds:.3f}", "_count": str(self.firsts)}
        lines = [
            *lines_of("requests_total", "counter", "Requests by path and status.", requests),
            *lines_of("request_seconds_total", "counter", "Time of all requests.", {"": f"{self.seconds:.3f}"}),
            *lines_of("time_to_first_token_seconds", "summary", "From a request to its first token.", first),
        ]
        for name, (kind, meaning, of) in BY_MODEL.items():
            values = {
                f'{{model="{quoted(model)}"}}': str(of(served.scheduler)) for model, served in self.models.items()
            }
            lines += lines_of(name, kind, meaning, values)
        return "\n".join(lines) + "\n"


def lines_of(name: str, kind: str, meaning: str, values: Mapping[str, str]) -> list[str]:
    """The lines of one metric; ``values`` by what follows its name, such as labels."""
    name = f"llmcli_{name}"
    written = [f"{name}{rest} {value}" for rest, value in values.items()]
    return [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}", *written]


def quoted(label: str) -> str:
    """The value of a label, as the format writes it."""
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
