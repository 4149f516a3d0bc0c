"""An OpenAI-compatible server on localhost, which sends the documented responses and broken ones.

Its model has a vocabulary of six tokens and generates them in a fixed cycle. The next token of the cycle has a
probability of 0.5, and each one after it half the probability of the one before.
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

VOCABULARY = (" one", " two", " 🙂", " [bold]", " \x1b[31m", " six")


def logprob(rank: int) -> float:
    """Return the natural logarithm of 1/2, 1/4, 1/8, … for rank 0, 1, 2, …"""
    return (rank + 1) * math.log(0.5)


def ranked(position: int) -> list[tuple[str, float]]:
    """Return all tokens with their log probabilities at a position of the response, most likely first."""
    return [(VOCABULARY[(position + rank) % len(VOCABULARY)], logprob(rank)) for rank in range(len(VOCABULARY))]


@dataclass
class ReceivedRequest:
    """A request as the server received it."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Responder = Callable[["Handler"], None]


@dataclass
class Endpoint:
    """The server's settings, and the requests it received.

    Each of ``next_responders`` answers one POST request in place of the usual response; after them ``responder``, if
    set, answers all of them. The model list names ``owner`` as the owner of each of ``models``. A request with one of
    the ``forbidden`` fields is an error.
    """

    url: str
    models: list[str] = field(default_factory=lambda: ["toy"])
    owner: str = "vllm"
    key: str | None = None
    next_responders: list[Responder] = field(default_factory=list)
    responder: Responder | None = None
    forbidden: tuple[str, ...] = ()
    requests: list[ReceivedRequest] = field(default_factory=list)

    @property
    def posts(self) -> list[dict[str, Any]]:
        """The bodies of the POST requests."""
        return [request.body for request in self.requests if request.method == "POST"]


def chosen_ranks(body: dict[str, Any]) -> list[int]:
    """Return the rank of each generated token: 0, except that the seed determines every third one."""
    seed = body.get("seed") or 0
    return [seed % len(VOCABULARY) if position % 3 == 2 else 0 for position in range(body["max_tokens"])]


def generated(body: dict[str, Any]) -> list[tuple[int, str, float]]:
    """Return position, text and log probability of each generated token."""
    return [(position, *ranked(position)[rank]) for position, rank in enumerate(chosen_ranks(body))]


def completion_logprobs(tokens: list[tuple[int, str, float]], count: int) -> dict[str, Any]:
    """Return the completions API's ``logprobs``; a generated token below the top ``count`` is added to them."""
    return {
        "tokens": [text for _, text, _ in tokens],
        "token_logprobs": [logprob for _, _, logprob in tokens],
        "top_logprobs": [dict(ranked(position)[:count]) | {text: logprob} for position, text, logprob in tokens],
        "text_offset": [0] * len(tokens),
    }


def chat_logprobs(tokens: list[tuple[int, str, float]], count: int) -> dict[str, Any]:
    """Return the chat completions API's ``logprobs``."""

    def entry(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    return {
        "content": [
            {**entry(text, logprob), "top_logprobs": [entry(*top) for top in ranked(position)[:count]]}
            for position, text, logprob in tokens
        ]
    }


class Handler(BaseHTTPRequestHandler):
    """Responds to requests as ``endpoint`` says, and records them there."""

    endpoint: Endpoint
    body: dict[str, Any]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.record({})
        if self.endpoint.key is not None and self.headers.get("Authorization") != f"Bearer {self.endpoint.key}":
            self.json({"error": {"message": "wrong key: " + str(self.headers.get("Authorization"))}}, 401)
        elif self.path.endswith("/models"):
            owner = self.endpoint.owner
            self.json({"object": "list", "data": [{"id": name, "owned_by": owner} for name in self.endpoint.models]})
        else:
            self.json({"error": {"message": "no such page"}}, 404)

    def do_POST(self) -> None:
        body = self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.record(body)
        try:
            if self.endpoint.next_responders:
                self.endpoint.next_responders.pop(0)(self)
            elif self.endpoint.responder is not None:
                self.endpoint.responder(self)
            else:
                self.respond(body)
        except OSError:
            pass  # the client closed the connection

    def record(self, body: dict[str, Any]) -> None:
        self.endpoint.requests.append(ReceivedRequest(self.command, self.path, dict(self.headers.items()), body))

    def respond(self, body: dict[str, Any]) -> None:
        """Send the usual response to a POST request."""
        forbidden = [name for name in body if name in self.endpoint.forbidden]
        if forbidden:
            self.json({"error": {"message": f"{forbidden[0]} is not supported", "param": forbidden[0]}}, 400)
        elif body.get("echo"):
            self.json(echoed(body))
        elif body.get("stream"):
            self.stream(chunks(body))
        else:
            self.json(completed(body))

    def json(self, content: object, status: int = 200, **headers: str) -> None:
        self.raw(json.dumps(content).encode(), status, "application/json", **headers)

    def raw(self, data: bytes, status: int = 200, kind: str = "text/event-stream", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def begin_stream(self) -> None:
        """Send the header of a stream of unknown length."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()

    def stream(self, events: Iterator[dict[str, Any]]) -> None:
        self.begin_stream()
        for chunk in events:
            self.wfile.write(event(chunk))
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")

    def stream_slowly(self, data: bytes, size: int) -> None:
        """Send ``data`` as a stream in parts of ``size`` bytes, with a pause after each."""
        self.begin_stream()
        for start in range(0, len(data), size):
            self.wfile.write(data[start : start + size])
            self.wfile.flush()
            time.sleep(0.001)


def event(content: object, *, ascii: bool = False) -> bytes:
    """Return a server-sent event with ``content`` as JSON."""
    return b"data: " + json.dumps(content, ensure_ascii=ascii).encode() + b"\n\n"


def completed(body: dict[str, Any]) -> dict[str, Any]:
    """Return the response to a request without streaming."""
    text = "".join(text for _, text, _ in generated(body))
    count = body["max_tokens"]
    usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
    inner: dict[str, Any] = {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
    return {"choices": [{"index": 0, **inner, "finish_reason": "length"}], "usage": usage}


def chunks(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the events of the response to a streaming request."""
    chat = "messages" in body
    if chat:
        yield {"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}
    for token in generated(body):
        inner: dict[str, Any] = {"delta": {"content": token[1]}} if chat else {"text": token[1]}
        if chat and body.get("logprobs"):
            inner["logprobs"] = chat_logprobs([token], body["top_logprobs"])
        elif not chat and body.get("logprobs") is not None:
            inner["logprobs"] = completion_logprobs([token], body["logprobs"])
        yield {"choices": [{"index": 0, **inner, "finish_reason": None}]}
    yield {"choices": [{"index": 0, **({"delta": {}} if chat else {"text": ""}), "finish_reason": "length"}]}


def echoed(body: dict[str, Any]) -> dict[str, Any]:
    """Return the prompt with its log probabilities and one more token; it must be "Zero" and tokens of VOCABULARY."""
    tokens: list[tuple[int, str, float]] = []
    rest = body["prompt"].removeprefix("Zero")
    while rest:
        text = next(token for token in VOCABULARY if rest.startswith(token))
        position = len(tokens)
        tokens.append((position, text, dict(ranked(position))[text]))
        rest = rest.removeprefix(text)
    last = generated({"max_tokens": 1})[0]
    logprobs = completion_logprobs([*tokens, last], body["logprobs"])
    for name, first in (("tokens", "Zero"), ("token_logprobs", None), ("top_logprobs", None), ("text_offset", 0)):
        logprobs[name].insert(0, first)
    return {"choices": [{"text": body["prompt"] + last[1], "logprobs": logprobs, "finish_reason": "length"}]}


class QuietServer(ThreadingHTTPServer):
    """A server that prints nothing when a client closes the connection early."""

    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Endpoint]:
    """Run a server while the context is open."""
    handler = type("EndpointHandler", (Handler,), {})
    with QuietServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        handler.endpoint = Endpoint(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield handler.endpoint  # type: ignore[attr-defined]
        finally:
            server.shutdown()
            thread.join()
