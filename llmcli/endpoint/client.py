"""Requests to one server, over HTTP: JSON there, JSON back, or a stream of it; sizes and times are bounded."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from llmcli.endpoint.address import Address
from llmcli.endpoint.events import events, parse
from llmcli.endpoint.failures import ServerError, malformed, refusal, told
from llmcli.endpoint.key import Key

CONNECT = 10.0  # seconds until a connection stands
SILENCE = 300.0  # seconds without a word: a large model may have to be loaded first
MOST_ERROR = 2**16  # bytes of a refusal that are read
MOST_ANSWER = 2**26  # bytes of an answer


class Client:
    """Asks one server, from several threads if need be. Nothing that it raises or returns holds the key.

    It follows no redirection, which could take the key and the prompt to somebody else, and unpacks nothing, which
    could grow without bound. To this machine it goes past all proxies.
    """

    def __init__(self, address: Address, key: Key | None) -> None:
        self.address = address
        self._key = key
        headers = {"Accept-Encoding": "identity", "User-Agent": "llmcli"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key.value}"
        self._http = httpx2.Client(
            headers=headers,
            # One that a server has closed meanwhile fails when it is used again: each request has its own.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
            follow_redirects=False,
            trust_env=not address.here,
        )

    def get(self, path: str) -> dict[str, Any]:
        """What lies at ``path``. Errors (ServerError): as of all requests, no answer, a refusal, or nonsense."""
        with told(self.address, self._key), self._asked("GET", path, None) as answer:
            return self._clean(parse(b"".join(_bounded(answer))))

    def post(self, path: str, body: dict[str, Any], patience: float = 0.0) -> dict[str, Any]:
        """The whole answer to ``body``, on which the server may work for so many seconds longer in silence."""
        with told(self.address, self._key), self._asked("POST", path, body, patience) as answer:
            return self._clean(parse(b"".join(_bounded(answer))))

    def stream(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any]]:
        """The answer to ``body`` bit by bit; who leaves off closes the connection, at which a server stops."""
        with told(self.address, self._key), self._asked("POST", path, body) as answer:
            if answer.headers.get("content-type", "").startswith("application/json"):  # some know no streams
                yield self._clean(parse(b"".join(_bounded(answer))))
                return
            for event in events(_bounded(answer)):
                yield self._clean(event)

    def close(self) -> None:
        self._http.close()

    def _clean(self, found: dict[str, Any]) -> dict[str, Any]:
        """The JSON without the key. Errors: it is one."""
        try:
            found = found if self._key is None else self._key.without(found)
        except RecursionError:
            raise malformed("it is nested too deep") from None
        error = found.get("error")
        if error:
            said = error.get("message") if isinstance(error, dict) else error
            raise ServerError(
                f"{self.address.host} failed: {' '.join(str(said).split())[:300]}", "its log may say more"
            )
        return found

    @contextmanager
    def _asked(
        self, method: str, path: str, body: dict[str, Any] | None, patience: float = 0.0
    ) -> Iterator[httpx2.Response]:
        times = httpx2.Timeout(SILENCE, connect=CONNECT, read=SILENCE + patience, pool=None)
        with self._http.stream(method, self.address.base + path, json=body, timeout=times) as answer:
            if answer.status_code != 200:
                start = b""
                for chunk in answer.iter_raw():
                    start += chunk
                    if len(start) > MOST_ERROR:
                        break
                status, headers = answer.status_code, answer.headers
                raise refusal(self.address, self._key, path, status, headers, start[:MOST_ERROR])
            if answer.headers.get("content-type", "").startswith("text/html"):
                raise malformed("it is a web page")
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise malformed("it is packed, though nobody asked for that")
            yield answer


def _bounded(answer: httpx2.Response) -> Iterator[bytes]:
    """The bytes of an answer. Errors: too many, or too slow."""
    size, heard = 0, time.monotonic()
    for chunk in answer.iter_raw():
        size += len(chunk)
        if size > MOST_ANSWER:
            raise malformed("it does not end")
        # Signs of life alone, a comment now and then, are no answer.
        if b"data" in chunk:
            heard = time.monotonic()
        elif time.monotonic() - heard > SILENCE:
            raise httpx2.ReadTimeout("")
        yield chunk
