"""Responses of a server: bytes -> server-sent events -> JSON objects -> chunks of text with their tokens.

Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmcli.endpoint.errors import malformed
from llmcli.endpoint.tokens import ServerToken, parse_tokens

MAX_LINE = 2**22  # bytes: more than any token and its alternatives take
END = "[DONE]"


def server_sent_events(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a stream of events until it ends or sends [DONE].

    Raises LlmcliError if the stream has anything else.
    """
    for line in split_lines(chunks):
        if not line or line.startswith(b":"):  # the end of an event; a keep-alive comment
            continue
        name, _, value = line.partition(b":")
        data = value.decode("utf-8", "replace").strip()
        if name == b"data" and data == END:
            return
        if name == b"data":
            yield parse_json(data)
        elif name not in (b"event", b"id", b"retry"):
            raise malformed("it is not a stream of events")


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield complete lines without their line ends; an incomplete last line is dropped.

    Lines stay bytes until they are complete, so that a character split between two chunks decodes correctly.
    Raises LlmcliError if a line is longer than ``MAX_LINE``.
    """
    buffer = b""
    for chunk in chunks:
        *complete, rest = chunk.split(b"\n")
        for part in complete:
            yield (buffer + part).removesuffix(b"\r")
            buffer = b""
        buffer += rest
        if len(buffer) > MAX_LINE:
            raise malformed("an endless line")


def parse_json(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises LlmcliError if ``text`` is anything else."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise malformed("it is not JSON") from None
    if not isinstance(data, dict):
        raise malformed("it is not a JSON object")
    return data


@dataclass(frozen=True)
class Usage:
    """The token counts that a server reports; None if it does not."""

    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True)
class ResponseChunk:
    """One event of a stream, or a whole response. ``finish`` is the server's own word, None until the text ends.

    ``thoughts`` are the model's before the text, if the server separates them.
    """

    text: str
    tokens: tuple[ServerToken, ...]
    finish: str | None
    usage: Usage | None
    thoughts: str = ""


def parse_chunk(data: Mapping[str, Any], top_logprobs: int | None = None) -> ResponseChunk:
    """Parse an event or a whole response of /completions or /chat/completions.

    ``top_logprobs`` is the number of most probable tokens to keep at each position; tokens are read only if it is
    given. Raises LlmcliError if ``data`` has another form.
    """
    choices = data.get("choices")
    if not isinstance(choices, list):
        raise malformed("it has no choices")
    usage = _parse_usage(data.get("usage"))
    if not choices:
        return ResponseChunk("", (), None, usage)
    choice = choices[0]
    if not isinstance(choice, Mapping):
        raise malformed("a choice is not an object")
    inner = choice.get("delta") or choice.get("message") or choice
    text = inner.get("text" if inner is choice else "content") if isinstance(inner, Mapping) else 0
    finish = choice.get("finish_reason")
    if not isinstance(text, str | None) or not isinstance(finish, str | None):
        raise malformed("its text is not a string")
    tokens = parse_tokens(choice.get("logprobs"), top_logprobs) if top_logprobs else ()
    return ResponseChunk(text or "", tokens, finish, usage, _thoughts(inner))


def _thoughts(message: Mapping[str, Any]) -> str:
    """The thoughts in a message: llama.cpp, SGLang and DeepSeek have one name for them, vLLM and ollama another."""
    found = message.get("reasoning_content") or message.get("reasoning")
    return found if isinstance(found, str) else ""


def _parse_usage(data: Any) -> Usage | None:
    if not isinstance(data, Mapping):
        return None
    return Usage(_count(data.get("prompt_tokens")), _count(data.get("completion_tokens")))


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**53 else None
