"""Counters of the server in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

from collections import Counter

from llmcli.serve.scheduler import Scheduler

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Requests by path and status, the time that they took, and what the scheduler counts."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds = 0.0
        self.first_seconds, self.firsts = 0.0, 0

    def first_token(self, seconds: float) -> None:
        """Count the time from a request to its first token."""
        self.first_seconds += seconds
        self.firsts += 1

    def text(self) -> str:
        """All numbers, each with its type."""
        scheduler, counts = self.scheduler, self.scheduler.counts
        lines = ["# TYPE llmcli_requests_total counter"]
        lines += [
            f'llmcli_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self.requests.items())
        ]
        numbers = {
            "llmcli_request_seconds_total": (self.seconds, "counter"),
            "llmcli_first_token_seconds_sum": (self.first_seconds, "counter"),
            "llmcli_first_token_seconds_count": (self.firsts, "counter"),
            "llmcli_prompt_tokens_total": (counts.prompt_tokens, "counter"),
            "llmcli_cached_prompt_tokens_total": (counts.cached_tokens, "counter"),
            "llmcli_generated_tokens_total": (counts.generated_tokens, "counter"),
            "llmcli_running_texts": (scheduler.running, "gauge"),
            "llmcli_waiting_requests": (scheduler.waiting, "gauge"),
            "llmcli_prefix_bytes": (scheduler.prefixes.nbytes, "gauge"),
        }
        for name, (value, kind) in numbers.items():
            lines += [f"# TYPE {name} {kind}", f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"]
        return "\n".join(lines) + "\n"
