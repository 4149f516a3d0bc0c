"""What can go wrong between here and a server, each as one line that says what to do."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx2

from llmcli.endpoint.address import Address
from llmcli.endpoint.key import VARIABLE, Key
from llmcli.errors import LlmcliError

MOST_SHOWN = 300  # characters of a server's own words
BUSY = (408, 429, 500, 502, 503, 504)  # which another time may not be the answer


class ServerError(LlmcliError):
    """What a server answered, or that it did not.

    ``status`` is that of HTTP, None without an answer. ``again``: whether the same request may fare better
    later, after ``wait`` seconds if the server named a time.
    """

    def __init__(
        self, message: str, hint: str = "", *, status: int | None = None, again: bool = False, wait: float | None = None
    ) -> None:
        super().__init__(message, hint)
        self.status = status
        self.again = again
        self.wait = wait

    @property
    def of_this_request(self) -> bool:
        """Whether another request may be answered all the same."""
        return self.status in (400, 413, 422, 500)


def malformed(what: str) -> ServerError:
    """An answer in a form that no OpenAI-compatible server gives."""
    return ServerError(
        f"the server's answer makes no sense: {what}", "is this the address of an OpenAI-compatible server?"
    )


def refusal(
    address: Address, key: Key | None, path: str, status: int, headers: Mapping[str, str], body: bytes
) -> ServerError:
    """The error for an answer that is none, with the server's own words where it has any."""
    said = _words(body, key)
    told = f"{address.host} answered with status {status}" + (f": {said}" if said else "")
    if 300 <= status < 400:
        place = _shown(headers.get("location", "elsewhere"), key)
        return ServerError(f"{address.host} sends requests on to {place}", "give that address, if you trust it")
    if status in (401, 403):
        what = "does not accept the key" if key else "wants a key"
        return ServerError(
            f"{address.host} {what}" + (f": {said}" if said else ""),
            f"set {VARIABLE}, or name a file with --api-key-file",
            status=status,
        )
    if status in (404, 405):
        hint = {
            "/completions": "is -m right? a server may also only chat: llmcli chat --endpoint URL",
            "/chat/completions": "is -m right? a server may also know no chat: --raw",
        }.get(path, "is the address right?")
        return ServerError(told, hint, status=status)
    if status in BUSY:
        hint = "wait a little; batch asks again by itself" if status == 429 else "try again later; its log may say more"
        return ServerError(told, hint, status=status, again=True, wait=_wait(headers.get("retry-after")))
    return ServerError(told, "leave out what it does not take", status=status)


def _words(body: bytes, key: Key | None) -> str:
    """What an error's body says: {"error": {"message": …}} or a like form, or plain text; nothing of a web page."""
    text = body.decode("utf-8", "replace")
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return "" if "<" in text[:MOST_SHOWN] else _shown(text, key)
    for name in ("error", "detail", "message"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    return _shown(found if isinstance(found, str) else json.dumps(found, ensure_ascii=False), key)


def _shown(text: str, key: Key | None) -> str:
    """A server's words on one line, without the key."""
    text = " ".join((key.without(text) if key else text).split())
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def _wait(text: str | None) -> float | None:
    """Retry-After in seconds; None without one. Its other form, a date, counts as none."""
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


@contextmanager
def told(address: Address, key: Key | None) -> Iterator[None]:
    """A block in which what the network does wrong is raised as ServerError.

    The causes are not chained: they hold the request with its key, and --verbose would print them.
    """
    try:
        yield
    except httpx2.ConnectError as error:
        raise ServerError(
            f"no connection to {address.host}: {_shown(str(error), key)}",
            "is the server running, and the address right?",
            again=True,
        ) from None
    except httpx2.TimeoutException:
        raise ServerError(
            f"{address.host} did not answer in time", "is it still loading the model? try again", again=True
        ) from None
    except httpx2.TransportError as error:
        raise ServerError(
            f"the connection to {address.host} broke: {_shown(str(error), key)}", "try again", again=True
        ) from None
    except (httpx2.InvalidURL, httpx2.HTTPError, UnicodeError) as error:
        raise ServerError(
            f"{address.host} cannot be asked: {_shown(str(error), key)}", "is the address right?"
        ) from None
