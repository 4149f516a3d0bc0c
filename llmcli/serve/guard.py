"""Who is served: requests from other sites, for other hosts and without the key are refused before anything is read.

A page of another site must not use a server on this machine: browsers send such requests with an Origin, or, after DNS
rebinding, with a Host that is not this machine's name.
"""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from llmcli.endpoint.address import ApiKey
from llmcli.serve.errors import ApiError

FREE = ("/", "/health")  # need no key; nor do files of the page


class Guard:
    """ASGI middleware that passes allowed requests to ``app`` and refuses others with an error.

    If ``local``, the Host header must name this machine.
    """

    def __init__(self, app: ASGIApp, key: ApiKey | None, *, local: bool) -> None:
        self.app, self.key, self.local = app, key, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refusal = self.refusal(Headers(scope=scope), scope["path"])
            if refusal is not None:
                response = JSONResponse(refusal.body(), refusal.status, refusal.headers)
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def refusal(self, headers: Headers, path: str) -> ApiError | None:
        """Why a request is not served; None if it is."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.local and not is_local(host):
            return ApiError(403, f"the Host header must name this machine, as localhost does, not {host[:80]!r}")
        if origin is not None and (not host or origin.partition("://")[2] != host):
            return ApiError(403, f"requests from pages of other sites are refused: the Origin is {origin[:80]!r}")
        free = path in FREE or path.startswith("/page/")
        if self.key is not None and not free and not self.is_key(headers.get("authorization", "")):
            return ApiError(
                401,
                "the API key is missing or wrong",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return None

    def is_key(self, given: str) -> bool:
        """Whether the Authorization header carries the key. Compares in constant time."""
        assert self.key is not None
        scheme, _, value = given.partition(" ")
        same = hmac.compare_digest(value.strip().encode(), self.key.value.encode())
        return same and scheme.lower() == "bearer"


def is_local(host: str) -> bool:
    """Whether the header Host names this machine, as localhost or an address of its own."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
