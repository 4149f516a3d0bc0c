"""Errors of requests to a server, each one line with a hint."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx2

from llmcli.endpoint.address import Address, ApiKey
from llmcli.errors import LlmcliError

MAX_SHOWN = 300  # characters of a server's own message
RETRYABLE = (408, 429, 500, 502, 503, 504)  # a later attempt may succeed


class ServerError(LlmcliError):
    """An error that a server returned, or a request that got no usable response.

    ``status`` is the HTTP status, None without a response. ``retryable``: the same request may succeed later, after
    ``retry_after`` seconds if the server named a time.
    """

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        kind: str = "",
        status: int | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, hint, kind=kind)
        self.status = status
        self.retryable = retryable
        self.retry_after = retry_after

    @property
    def affects_only_this_request(self) -> bool:
        """Whether the server may still accept other requests."""
        return self.status in (400, 413, 422, 500)


def malformed(problem: str) -> ServerError:
    """Return the error for a response that no OpenAI-compatible server sends."""
    return ServerError(
        f"invalid response from the server: {problem}", "check that the address is that of an OpenAI-compatible server"
    )


def refusal(
    address: Address, key: ApiKey | None, path: str, status: int, headers: Mapping[str, str], body: bytes
) -> ServerError:
    """Return the error for a response with a status other than 200, including the server's own message if any."""
    detail = _error_message(body, key)
    suffix = f": {detail}" if detail else ""
    message = f"{address.host} returned status {status}{suffix}"
    if 300 <= status < 400:
        location = _one_line(headers.get("location", "another address"), key)
        return ServerError(f"{address.host} redirects to {location}", "use that address if you trust it")
    if status in (401, 403):
        problem = "rejected the API key" if key else "requires an API key"
        return ServerError(f"{address.host} {problem}{suffix}", kind="api-key-needed", status=status)
    if status in (404, 405):
        kinds = {"/completions": "server-without-completions", "/chat/completions": "server-without-chat"}
        hint = "" if path in kinds else "check the address"
        return ServerError(message, hint, kind=kinds.get(path, ""), status=status)
    if status in RETRYABLE:
        hint = "wait a moment; llmcli batch retries by itself" if status == 429 else "try again later; check its log"
        retry_after = _parse_retry_after(headers.get("retry-after"))
        return ServerError(message, hint, status=status, retryable=True, retry_after=retry_after)
    return ServerError(message, "remove the settings that the server does not support", status=status)


def _error_message(body: bytes, key: ApiKey | None) -> str:
    """The message in an error's body: {"error": {"message": …}} or a similar form, or plain text. Empty for HTML."""
    text = body.decode("utf-8", "replace")
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return "" if "<" in text[:MAX_SHOWN] else _one_line(text, key)
    for name in ("error", "detail", "message"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    return _one_line(found if isinstance(found, str) else json.dumps(found, ensure_ascii=False), key)


def _one_line(text: str, key: ApiKey | None) -> str:
    """Text from a server on one line, without the key, shortened to ``MAX_SHOWN`` characters."""
    text = " ".join((key.redact(text) if key else text).split())
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _parse_retry_after(header: str | None) -> float | None:
    """The Retry-After header in seconds; None if it is missing or a date."""
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


@contextmanager
def network_errors(address: Address, key: ApiKey | None) -> Iterator[None]:
    """Raise network errors inside the block as ServerError.

    The causes are not chained: they hold the request with its key, which a traceback would print.
    """
    try:
        yield
    except httpx2.ConnectError as error:
        raise ServerError(
            f"cannot connect to {address.host}: {_one_line(str(error), key)}",
            "check that the server is running and the address is right",
            retryable=True,
        ) from None
    except httpx2.TimeoutException:
        raise ServerError(
            f"{address.host} did not respond in time", "it may still be loading the model: try again", retryable=True
        ) from None
    except httpx2.TransportError as error:
        raise ServerError(
            f"the connection to {address.host} broke: {_one_line(str(error), key)}", "try again", retryable=True
        ) from None
    except (httpx2.InvalidURL, httpx2.HTTPError, UnicodeError) as error:
        raise ServerError(
            f"cannot send a request to {address.host}: {_one_line(str(error), key)}", "check the address"
        ) from None
