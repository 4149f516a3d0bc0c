"""Many requests to one server, several at a time, each retried after temporary failures."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TypeVar

from llmcli.endpoint.errors import ServerError
from llmcli.endpoint.generation import check_length, finish_reason
from llmcli.endpoint.response import Usage, parse_chunk
from llmcli.endpoint.server import Request, Server
from llmcli.text.surrogates import join_surrogates

T = TypeVar("T")

POLL = 0.2  # seconds: a long wait would ignore Ctrl-C on Windows
ATTEMPTS = 8  # about a minute in all, unless the server asks for longer waits
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds, doubled each time
MAX_RETRY_AFTER = 300.0  # seconds that a server may ask to wait


@dataclass(frozen=True)
class Completion:
    """A generated text, why it ended, the server's token counts, if it sends them, and the thoughts before the text."""

    text: str
    finish: str
    usage: Usage
    thoughts: str = ""


def complete(server: Server, request: Request) -> Completion:
    """Send one request and wait for the whole text."""
    chunk = parse_chunk(server.complete(request))
    check_length(chunk.text + chunk.thoughts, request.max_tokens)
    finish = finish_reason(chunk.finish or "length", has_stop_strings=bool(request.stop))
    usage = chunk.usage or Usage(None, None)
    return Completion(join_surrogates(chunk.text), finish, usage, join_surrogates(chunk.thoughts))


def complete_all(
    server: Server, requests: Iterable[tuple[int, Request]], concurrency: int
) -> Iterator[tuple[int, Completion | Exception]]:
    """Send numbered requests, up to ``concurrency`` at a time, and yield each result with its number on arrival.

    A request is taken from ``requests`` only when it can be sent. Closing the iterator abandons pending requests
    without waiting for them.
    """
    to_do: SimpleQueue[tuple[int, Request] | None] = SimpleQueue()
    done: SimpleQueue[tuple[int, Completion | Exception]] = SimpleQueue()
    stop, source, running, workers = Event(), iter(requests), 0, 0

    def work() -> None:
        while (job := to_do.get()) is not None and not stop.is_set():
            key, request = job
            try:
                done.put((key, with_retries(partial(complete, server, request), stop)))
            except Exception as error:
                done.put((key, error))

    try:
        while True:
            while running < concurrency and (job := next(source, None)) is not None:
                to_do.put(job)
                running += 1
                if workers < running:
                    Thread(target=work, daemon=True).start()
                    workers += 1
            if not running:
                return
            yield _next(done)
            running -= 1
    finally:
        stop.set()
        for _ in range(workers):
            to_do.put(None)


def _next(done: SimpleQueue[tuple[int, Completion | Exception]]) -> tuple[int, Completion | Exception]:
    while True:
        try:
            return done.get(timeout=POLL)
        except Empty:
            continue


def with_retries(call: Callable[[], T], stop: Event) -> T:
    """Return what ``call`` returns, retrying it after temporary failures until ``stop`` is set.

    Raises the error of the last attempt, or the first one that is not temporary.
    """
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except ServerError as error:
            last = attempt == ATTEMPTS - 1
            if not error.retryable or last or stop.wait(retry_delay(attempt, error.retry_after)):
                raise
    raise AssertionError


def retry_delay(attempt: int, retry_after: float | None) -> float:
    """Return the seconds to wait after ``attempt``: what the server requests, plus a random, growing delay.

    Exponential backoff with jitter (Brooker 2015, "Exponential Backoff And Jitter"): the randomness keeps many clients
    from retrying at the same moment.
    """
    longest: float = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT)
    return min(retry_after or 0.0, MAX_RETRY_AFTER) + longest * random.uniform(0.5, 1.0)
