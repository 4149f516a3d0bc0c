"""HTTP requests to one server: JSON out, JSON or a stream of JSON back, with bounded sizes and times."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from llmcli.endpoint.address import Address, ApiKey
from llmcli.endpoint.deadline import Deadline
from llmcli.endpoint.errors import ServerError, malformed, network_errors, refusal
from llmcli.endpoint.response import parse_json, server_sent_events

CONNECT_TIMEOUT = 10.0  # seconds
READ_TIMEOUT = 300.0  # seconds without data: the server may have to load a large model first
MAX_ERROR_BYTES = 2**16  # read from an error response
MAX_RESPONSE_BYTES = 2**26


class Client:
    """Sends requests to one server; safe to use from several threads.

    Nothing it raises or returns contains the whole key, but the events of a stream may contain it in pieces (see
    ``key_filter``).

    It follows no redirects, which could send the key and the prompt elsewhere, and accepts no compressed responses,
    which could expand without bound. It bypasses proxies for a server on this machine.
    """

    def __init__(self, address: Address, key: ApiKey | None) -> None:
        self.address = address
        self.key = key
        headers = {"Accept-Encoding": "identity", "User-Agent": "llmcli"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key.value}"
        self._http = httpx2.Client(
            headers=headers,
            # A kept connection that the server has closed fails on its next use, so each request opens its own.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
            follow_redirects=False,
            trust_env=not address.is_loopback,
        )

    def get(self, path: str) -> dict[str, Any]:
        """Return the JSON object at ``path``.

        Like every request, raises ServerError if there is no response, or an invalid one, or an error status.
        """
        with network_errors(self.address, self.key), self._response("GET", path, None) as response:
            return self._checked(parse_json(b"".join(_bounded(response))))

    def post(self, path: str, body: dict[str, Any], extra_seconds: float = 0.0) -> dict[str, Any]:
        """Return the whole response to ``body``; the server may stay silent ``extra_seconds`` longer than usual."""
        with network_errors(self.address, self.key), self._response("POST", path, body, extra_seconds) as response:
            return self._checked(parse_json(b"".join(_bounded(response))))

    def stream(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any]]:
        """Yield the events of the response to ``body``.

        Closing the generator closes the connection, which makes the server stop generating.
        """
        with network_errors(self.address, self.key), self._response("POST", path, body) as response:
            if response.headers.get("content-type", "").startswith("application/json"):  # a server without streaming
                yield self._checked(parse_json(b"".join(_bounded(response))))
                return
            for event in server_sent_events(_bounded(response)):
                yield self._checked(event)

    def close(self) -> None:
        self._http.close()

    def _checked(self, data: dict[str, Any]) -> dict[str, Any]:
        """``data`` without the key. Raises LlmcliError if it is an error object."""
        try:
            data = data if self.key is None else self.key.redact(data)
        except RecursionError:
            raise malformed("the JSON is nested too deeply") from None
        error = data.get("error")
        if error:
            message = error.get("message") if isinstance(error, dict) else error
            raise ServerError(
                f"{self.address.host} failed: {' '.join(str(message).split())[:300]}", "check the server's log"
            )
        return data

    @contextmanager
    def _response(
        self, method: str, path: str, body: dict[str, Any] | None, extra_seconds: float = 0.0
    ) -> Iterator[httpx2.Response]:
        limit = READ_TIMEOUT + extra_seconds
        timeout = httpx2.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT, read=limit, pool=None)
        deadline, url = Deadline(limit), self.address.base + path
        extensions = {"trace": deadline.trace}
        with deadline, self._http.stream(method, url, json=body, timeout=timeout, extensions=extensions) as response:
            if response.status_code != 200:
                start = b""
                for chunk in response.iter_raw():
                    start += chunk
                    if len(start) > MAX_ERROR_BYTES:
                        break
                status, headers = response.status_code, response.headers
                raise refusal(self.address, self.key, path, status, headers, start[:MAX_ERROR_BYTES])
            if response.headers.get("content-type", "").startswith("text/html"):
                raise malformed("it is a web page")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise malformed("it is compressed, which was not requested")
            yield response


def _bounded(response: httpx2.Response) -> Iterator[bytes]:
    """The bytes of a response. Raises LlmcliError if they are too many, or none come for too long."""
    size, last_data = 0, time.monotonic()
    for chunk in response.iter_raw():
        size += len(chunk)
        if size > MAX_RESPONSE_BYTES:
            raise malformed("it does not end")
        # Keep-alive comments do not count as data.
        if b"data" in chunk:
            last_data = time.monotonic()
        elif time.monotonic() - last_data > READ_TIMEOUT:
            raise httpx2.ReadTimeout("")
        yield chunk
