"""What a single request may ask for, so that none can take the whole machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """``body`` is in bytes, ``rules`` in characters of a grammar, ``seconds`` is the time for the whole answer.

    ``texts`` are the texts that one request may get: its prompts times ``n``.
    """

    body: int = 2**21
    texts: int = 128
    stops: int = 16
    stop_length: int = 1000
    alternatives: int = 20
    rules: int = 2**16
    seconds: float = 600.0
    body_seconds: float = 30.0
