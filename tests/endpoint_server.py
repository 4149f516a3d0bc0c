"""An OpenAI-compatible server on the loopback: the forms that OpenAI documents, and every way to break them.

Its model knows a few words and continues any text by the next ones of a fixed round; p is 0.5 for that one, and the
rivals come after it, each half as probable.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ROUND = (" one", " two", " 🙂", " [bold]", " \x1b[31m", " six")
TAIL = 0.5  # of the probability that is halved from rank to rank


def logprob(rank: int) -> float:
    """Natural log of 1/2, 1/4, 1/8, …"""
    return (rank + 1) * math.log(TAIL)


def ranked(place: int) -> list[tuple[str, float]]:
    """All tokens at a place of the answer with their log probabilities, best first."""
    return [(ROUND[(place + rank) % len(ROUND)], logprob(rank)) for rank in range(len(ROUND))]


@dataclass
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Act = Callable[["Handler"], None]


@dataclass
class Endpoint:
    """``acts`` are what the next answers to POST do in the place of the usual, one after the other.

    ``always`` does so for all of them. ``models`` are listed with ``owner``; ``forbidden`` fields are refused.
    """

    url: str
    models: list[str] = field(default_factory=lambda: ["toy"])
    owner: str = "vllm"
    key: str | None = None
    acts: list[Act] = field(default_factory=list)
    always: Act | None = None
    forbidden: tuple[str, ...] = ()
    asked: list[Asked] = field(default_factory=list)
    most_at_once: int = 0

    @property
    def posts(self) -> list[dict[str, Any]]:
        """The bodies of what was asked for."""
        return [asked.body for asked in self.asked if asked.method == "POST"]


def tokens(body: dict[str, Any]) -> list[int]:
    """The ranks written: always 0, but with a seed its own number decides for every third."""
    seed = body.get("seed") or 0
    return [seed % len(ROUND) if place % 3 == 2 else 0 for place in range(body["max_tokens"])]


def written(body: dict[str, Any]) -> list[tuple[int, str, float]]:
    """Place, text and log probability of each token of the answer."""
    return [(place, *ranked(place)[rank]) for place, rank in enumerate(tokens(body))]


def completion_logprobs(found: list[tuple[int, str, float]], most: int) -> dict[str, Any]:
    """The older form; the written token is added to its rivals where it is not among the first."""
    return {
        "tokens": [text for _, text, _ in found],
        "token_logprobs": [number for _, _, number in found],
        "top_logprobs": [dict(ranked(place)[:most]) | {text: number} for place, text, number in found],
        "text_offset": [0] * len(found),
    }


def chat_logprobs(found: list[tuple[int, str, float]], most: int) -> dict[str, Any]:
    """The form of chats."""

    def entry(text: str, number: float) -> dict[str, Any]:
        return {"token": text, "logprob": number, "bytes": list(text.encode())}

    return {
        "content": [
            {**entry(text, number), "top_logprobs": [entry(*rival) for rival in ranked(place)[:most]]}
            for place, text, number in found
        ]
    }


class Handler(BaseHTTPRequestHandler):
    endpoint: Endpoint
    body: dict[str, Any]
    protocol_version = "HTTP/1.1"
    busy = 0
    lock = threading.Lock()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.take({})
        if self.endpoint.key is not None and self.headers.get("Authorization") != f"Bearer {self.endpoint.key}":
            self.json({"error": {"message": "no: " + str(self.headers.get("Authorization"))}}, 401)
        elif self.path.endswith("/models"):
            owner = self.endpoint.owner
            self.json({"object": "list", "data": [{"id": name, "owned_by": owner} for name in self.endpoint.models]})
        else:
            self.json({"error": {"message": "no such page"}}, 404)

    def do_POST(self) -> None:
        body = self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.take(body)
        with self.lock:
            Handler.busy += 1
            self.endpoint.most_at_once = max(self.endpoint.most_at_once, Handler.busy)
        try:
            if self.endpoint.acts:
                self.endpoint.acts.pop(0)(self)
            elif self.endpoint.always is not None:
                self.endpoint.always(self)
            else:
                self.usual(body)
        except OSError:
            pass  # whoever asked has gone
        finally:
            with self.lock:
                Handler.busy -= 1

    def take(self, body: dict[str, Any]) -> None:
        self.endpoint.asked.append(Asked(self.command, self.path, dict(self.headers.items()), body))

    def usual(self, body: dict[str, Any]) -> None:
        wrong = [name for name in body if name in self.endpoint.forbidden]
        if wrong:
            self.json({"error": {"message": f"{wrong[0]} is not supported", "param": wrong[0]}}, 400)
        elif body.get("echo"):
            self.json(echoed(body))
        elif body.get("stream"):
            self.stream(chunks(body))
        else:
            self.json(whole(body))

    def json(self, found: object, status: int = 200, **headers: str) -> None:
        self.raw(json.dumps(found).encode(), status, "application/json", **headers)

    def raw(self, data: bytes, status: int = 200, kind: str = "text/event-stream", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def begin(self) -> None:
        """The head of a stream whose length nobody knows."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()

    def stream(self, found: Iterator[dict[str, Any]]) -> None:
        self.begin()
        for chunk in found:
            self.wfile.write(event(chunk))
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")

    def slowly(self, data: bytes, size: int) -> None:
        """A stream in small parts, each on its way before the next."""
        self.begin()
        for start in range(0, len(data), size):
            self.wfile.write(data[start : start + size])
            self.wfile.flush()
            time.sleep(0.001)


def event(found: object, *, ascii: bool = False) -> bytes:
    return b"data: " + json.dumps(found, ensure_ascii=ascii).encode() + b"\n\n"


def whole(body: dict[str, Any]) -> dict[str, Any]:
    text = "".join(text for _, text, _ in written(body))
    count = body["max_tokens"]
    usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
    inner: dict[str, Any] = {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
    return {"choices": [{"index": 0, **inner, "finish_reason": "length"}], "usage": usage}


def chunks(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    chat = "messages" in body
    if chat:
        yield {"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}
    for found in written(body):
        inner: dict[str, Any] = {"delta": {"content": found[1]}} if chat else {"text": found[1]}
        if chat and body.get("logprobs"):
            inner["logprobs"] = chat_logprobs([found], body["top_logprobs"])
        elif not chat and body.get("logprobs") is not None:
            inner["logprobs"] = completion_logprobs([found], body["logprobs"])
        yield {"choices": [{"index": 0, **inner, "finish_reason": None}]}
    yield {"choices": [{"index": 0, **({"delta": {}} if chat else {"text": ""}), "finish_reason": "length"}]}


def echoed(body: dict[str, Any]) -> dict[str, Any]:
    """The prompt, which must be of words of ROUND behind "Zero", with their log probabilities, and one token more."""
    found: list[tuple[int, str, float]] = []
    rest = body["prompt"].removeprefix("Zero")
    while rest:
        text = next(word for word in ROUND if rest.startswith(word))
        place = len(found)
        found.append((place, text, dict(ranked(place))[text]))
        rest = rest.removeprefix(text)
    more = written({"max_tokens": 1})[0]
    logprobs = completion_logprobs([*found, more], body["logprobs"])
    for name, first in (("tokens", "Zero"), ("token_logprobs", None), ("top_logprobs", None), ("text_offset", 0)):
        logprobs[name].insert(0, first)
    return {"choices": [{"text": body["prompt"] + more[1], "logprobs": logprobs, "finish_reason": "length"}]}


class Silent(ThreadingHTTPServer):
    """Says nothing of those that left early."""

    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Endpoint]:
    """A server while inside."""
    handler = type("Own", (Handler,), {})
    with Silent(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        handler.endpoint = Endpoint(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield handler.endpoint  # type: ignore[attr-defined]
        finally:
            server.shutdown()
            thread.join()
