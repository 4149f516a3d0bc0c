"""What a single request may ask for, so that none can take the whole machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The limits of one request.

    ``body``: bytes of the body; ``body_seconds``: seconds to receive it; ``seconds``: seconds for the whole response.
    ``texts``: number of prompts times ``n``; ``stops``: number of stop strings; ``stop_length``: characters of each;
    ``alternatives``: highest ``logprobs`` or ``top_logprobs``; ``rules``: characters of a grammar.
    """

    body: int = 2**21
    texts: int = 128
    stops: int = 16
    stop_length: int = 1000
    alternatives: int = 20
    rules: int = 2**16
    seconds: float = 600.0
    body_seconds: float = 30.0
