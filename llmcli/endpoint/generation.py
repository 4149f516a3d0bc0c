"""Text that a server generates: chunks as they arrive, limited to the requested length, and how the text ended."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

from llmcli.endpoint.address import ApiKey
from llmcli.endpoint.errors import ServerError, malformed
from llmcli.endpoint.key_filter import KeyFilter
from llmcli.endpoint.response import ResponseChunk, Usage, parse_chunk
from llmcli.explain.report import GeneratedToken
from llmcli.text.surrogates import SurrogateJoiner

MAX_CHARACTERS = 1024  # per token, on average
MAX_EMPTY = 2**14  # chunks without text in a row, in addition to the requested number of tokens


class ServerGeneration:
    """Iterate over the chunks, once; ``text`` is the text received so far, ``thoughts`` those before it.

    Neither contains the ``key``.

    ``usage`` are the server's token counts, once it sends them. ``exact_count``: whether it sent them, or each token
    with its log probability. ``finish`` is a key of ``render.generation.ENDINGS`` or the server's own word for another
    reason. ``first_seconds`` is the time to the first chunk with text, ``seconds`` the time to the last.
    """

    def __init__(
        self,
        events: Generator[dict[str, Any]],
        max_tokens: int,
        *,
        has_stop_strings: bool,
        top_logprobs: int | None,
        key: ApiKey | None = None,
    ) -> None:
        self.text = ""
        self.thoughts = ""
        self.finish: str | None = None
        self.usage = Usage(None, None)
        self.first_seconds = 0.0
        self.seconds = 0.0
        self._events, self._max_tokens = events, max_tokens
        self._has_stop_strings, self._top_logprobs = has_stop_strings, top_logprobs
        self._received = 0  # tokens, or chunks of text if the server sends no tokens
        self._received_tokens = False
        self._empty = 0
        self._surrogates, self._thought_surrogates = SurrogateJoiner(), SurrogateJoiner()
        self._key_filter, self._thought_filter = KeyFilter(key), KeyFilter(key)

    @property
    def tokens(self) -> int:
        """The number of tokens by the server's count, or else as received: most servers send one token per chunk."""
        return self._received if self.usage.completion_tokens is None else self.usage.completion_tokens

    @property
    def exact_count(self) -> bool:
        return self._received_tokens or self.usage.completion_tokens is not None

    def __iter__(self) -> Iterator[ResponseChunk]:
        """Yield the chunks. Raises ServerError if the server fails; the text so far is kept."""
        began = time.perf_counter()
        try:
            with closing(self._events):
                for event in self._events:
                    chunk = self._take(parse_chunk(event, self._top_logprobs))
                    if chunk.text or chunk.tokens or chunk.thoughts:
                        self.seconds = time.perf_counter() - began
                        self.first_seconds = self.first_seconds or self.seconds
                    yield chunk
                    if self._received > self._max_tokens:  # the server ignores the limit
                        self._received, self.finish = self._max_tokens, "length"
                        return
        finally:
            self._end()
        if self.finish is None:
            raise ServerError(
                "the server's response ended early",
                "check its log; the prompt may be too long",
                retryable=True,
            )

    def interrupt(self) -> None:
        """Stop early, and make the server stop."""
        self._events.close()
        self._end()
        self.finish = "interrupted"

    def _take(self, chunk: ResponseChunk) -> ResponseChunk:
        new = len(chunk.tokens) or bool(chunk.text or chunk.thoughts)
        self._received += new
        self._received_tokens = self._received_tokens or bool(chunk.tokens)
        self.usage = chunk.usage or self.usage
        if self._received > self._max_tokens:
            return self._end()
        self._empty = 0 if new else self._empty + 1
        thoughts = self._take_thoughts(chunk)
        if self._empty > MAX_EMPTY + self._max_tokens:  # a reasoning model may send empty chunks while it thinks
            raise malformed("it continues without text")
        text = self._surrogates.feed(chunk.text)
        if chunk.finish:
            self.finish = finish_reason(chunk.finish, has_stop_strings=self._has_stop_strings)
            text += self._surrogates.finish()
        chunk = replace(self._key_filter.feed(replace(chunk, text=text)), thoughts=thoughts)
        self.text += chunk.text
        check_length(self.text + self.thoughts, self._max_tokens)
        if not chunk.finish:
            return chunk
        rest = self._end()
        return replace(chunk, text=chunk.text + rest.text, tokens=chunk.tokens + rest.tokens)

    def _take_thoughts(self, chunk: ResponseChunk) -> str:
        """The new thoughts: all that is held back as soon as there is text."""
        piece = ResponseChunk(self._thought_surrogates.feed(chunk.thoughts), (), None, None)
        text = self._thought_filter.feed(piece).text
        if chunk.text or chunk.finish:
            text += self._thought_filter.finish().text
        self.thoughts += text
        return text

    def _end(self) -> ResponseChunk:
        """Return what was held back because the key may begin with it, and add it to ``text``."""
        rest = self._key_filter.finish()
        self.text += rest.text
        return rest


def check_length(text: str, tokens: int) -> None:
    """Raise ServerError if ``text`` is too long for this number of tokens."""
    if len(text) > MAX_CHARACTERS * tokens:
        raise malformed(f"its text is longer than {tokens} tokens can be")


def finish_reason(word: str, *, has_stop_strings: bool) -> str:
    """Translate the server's word for why a text ended: "stop" means the model's end or a stop string."""
    return word if word != "stop" else "stop" if has_stop_strings else "stop_token"


def generated_tokens(chunk: ResponseChunk, first: int) -> list[GeneratedToken]:
    """Return the tokens of a chunk as the views show them, numbered from ``first``.

    Text without tokens counts as one token of unknown probability.
    """
    if chunk.tokens:
        return [token.generated(index) for index, token in enumerate(chunk.tokens, start=first)]
    if not chunk.text:
        return []
    data = chunk.text.encode()
    return [GeneratedToken(first, None, chunk.text, data, None, None, None, None, None, None, ())]
