"""Many requests to one server, some of them at once, each asked again where it failed for the moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, Thread

from llmcli.endpoint.halves import whole
from llmcli.endpoint.reply import Usage, read_piece
from llmcli.endpoint.retry import patiently
from llmcli.endpoint.server import Ask, Server
from llmcli.endpoint.writing import check_length, named

GLANCE = 0.2  # seconds: on Windows Ctrl-C does not end a wait, so none is long


@dataclass(frozen=True)
class Answer:
    """A text, why it ended, and the server's counts, where it tells them."""

    text: str
    finish: str
    usage: Usage


def answer_to(server: Server, ask: Ask) -> Answer:
    """One answer, at once and whole."""
    piece = read_piece(server.answer(ask))
    check_length(piece.text, ask.max_tokens)
    finish = named(piece.finish or "length", stops=bool(ask.stop))
    return Answer(whole(piece.text), finish, piece.usage or Usage(None, None))


def side_by_side(
    server: Server, asks: Iterable[tuple[int, Ask]], size: int
) -> Iterator[tuple[int, Answer | Exception]]:
    """The answer to each, by its number, as they come; ``size`` of them are asked for at once.

    Who leaves off waits for none: what is under way is given up. Nothing is asked for before there is room.
    """
    to_do: SimpleQueue[tuple[int, Ask] | None] = SimpleQueue()
    done: SimpleQueue[tuple[int, Answer | Exception]] = SimpleQueue()
    stop, source, running, workers = Event(), iter(asks), 0, 0

    def work() -> None:
        while (job := to_do.get()) is not None and not stop.is_set():
            key, ask = job
            try:
                done.put((key, patiently(partial(answer_to, server, ask), stop)))
            except Exception as error:
                done.put((key, error))

    try:
        while True:
            while running < size and (job := next(source, None)) is not None:
                to_do.put(job)
                running += 1
                if workers < running:
                    Thread(target=work, daemon=True).start()
                    workers += 1
            if not running:
                return
            yield _first(done)
            running -= 1
    finally:
        stop.set()
        for _ in range(workers):
            to_do.put(None)


def _first(done: SimpleQueue[tuple[int, Answer | Exception]]) -> tuple[int, Answer | Exception]:
    while True:
        try:
            return done.get(timeout=GLANCE)
        except Empty:
            continue
