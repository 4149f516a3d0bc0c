"""A text as a server writes it: pieces as they come, bounded by what was asked for, and how it went."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

from llmcli.endpoint.failures import ServerError, malformed
from llmcli.endpoint.halves import Halves
from llmcli.endpoint.reply import Piece, Usage, read_piece

MOST_CHARACTERS = 1024  # of a token, in the mean
MOST_EMPTY = 2**14  # pieces in a row without text: a server that only seems to work


class Writing:
    """Iterate, once, to get the pieces; ``text`` is all of theirs.

    ``usage`` is what the server counted, once it says so; ``counted`` whether it did, or told the tokens one by one.
    ``finish`` is a reason that ``render.generation.ENDINGS`` knows, or the server's own word for another.
    ``first_seconds`` run to the first piece of text, ``seconds`` to the last.
    """

    def __init__(self, events: Generator[dict[str, Any]], max_tokens: int, *, stops: bool, rivals: int | None) -> None:
        self.text = ""
        self.finish: str | None = None
        self.usage = Usage(None, None)
        self.first_seconds = 0.0
        self.seconds = 0.0
        self._events, self._most, self._stops, self._rivals = events, max_tokens, stops, rivals
        self._seen = 0  # tokens that were told, or else pieces of text
        self._told = False
        self._empty = 0
        self._halves = Halves()

    @property
    def tokens(self) -> int:
        """As the server counts them, or else as they came: without numbers, servers send one in each piece."""
        return self._seen if self.usage.written is None else self.usage.written

    @property
    def counted(self) -> bool:
        return self._told or self.usage.written is not None

    def __iter__(self) -> Iterator[Piece]:
        """Errors (ServerError): what goes wrong on the way; the text up to there stays."""
        began = time.perf_counter()
        with closing(self._events):
            for said in self._events:
                piece = self._take(read_piece(said, self._rivals))
                if piece.text or piece.tokens:
                    self.seconds = time.perf_counter() - began
                    self.first_seconds = self.first_seconds or self.seconds
                yield piece
                if self._seen > self._most:  # it does not end where it was asked to
                    self._seen, self.finish = self._most, "length"
                    return
        if self.finish is None:
            raise ServerError(
                "the server broke off in the middle of its answer",
                "its log may say why; a prompt too long?",
                again=True,
            )

    def interrupt(self) -> None:
        """Stop early."""
        self._events.close()
        self.finish = "interrupted"

    def _take(self, piece: Piece) -> Piece:
        new = len(piece.tokens) or bool(piece.text)
        self._seen += new
        self._told = self._told or bool(piece.tokens)
        self.usage = piece.usage or self.usage
        if self._seen > self._most:
            return Piece("", (), None, None)
        self._empty = 0 if new else self._empty + 1
        if self._empty > MOST_EMPTY + self._most:  # a model that thinks first may show nothing of it
            raise malformed("it goes on without a text")
        text = self._halves.feed(piece.text)
        if piece.finish:
            self.finish = named(piece.finish, stops=self._stops)
            text += self._halves.finish()
        self.text += text
        check_length(self.text, self._most)
        return replace(piece, text=text)


def check_length(text: str, tokens: int) -> None:
    """Raise at a text that no ``tokens`` can be."""
    if len(text) > MOST_CHARACTERS * tokens:
        raise malformed("it is longer than any text of so many tokens")


def named(finish: str, *, stops: bool) -> str:
    """Why a text ended, in our words: a server says "stop" whether the model ended it or a stop string came."""
    return finish if finish != "stop" else "stop" if stops else "stop_token"
