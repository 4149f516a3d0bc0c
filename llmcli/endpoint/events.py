"""Bytes as they come -> server-sent events -> JSON: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from llmcli.endpoint.failures import malformed

MOST_LINE = 2**22  # bytes: no token and its rivals take as many
END = "[DONE]"


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines without their ends; of a last one that was cut, nothing. Errors: one without end.

    Cut at bytes, and made text only when whole: a character that came in two parts is one again.
    """
    kept = b""
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            yield (kept + part).removesuffix(b"\r")
            kept = b""
        kept += rest
        if len(kept) > MOST_LINE:
            raise malformed("a line without end")


def events(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects that a stream tells, until it ends or says [DONE]. Errors: something else comes."""
    for line in lines(chunks):
        if not line or line.startswith(b":"):  # the end of an event; a sign of life
            continue
        name, _, value = line.partition(b":")
        data = value.decode("utf-8", "replace").strip()
        if name == b"data" and data == END:
            return
        if name == b"data":
            yield parse(data)
        elif name not in (b"event", b"id", b"retry"):
            raise malformed("it is no stream of events")


def parse(text: str | bytes) -> dict[str, Any]:
    """A JSON object. Errors: anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise malformed("it is not JSON") from None
    if not isinstance(found, dict):
        raise malformed("it is no JSON object")
    return found
