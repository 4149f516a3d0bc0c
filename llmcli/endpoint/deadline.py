"""A time limit for the beginning of a response, which the HTTP client itself limits only between two packets."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import httpx2


class Deadline:
    """A context manager in which a request's response must begin within ``seconds``. Raises httpx2.ReadTimeout.

    Otherwise a server could send informational responses ("100 Continue") forever. ``trace`` must be the request's
    extension of that name.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._stream: Any = None
        self._timer: threading.Timer | None = None
        self._passed = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._passed and isinstance(error, httpx2.TransportError):
            raise httpx2.ReadTimeout("") from None

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Follow a request's events: its connection opens, and its response begins."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._stream = info["return_value"]
        elif event == "http11.receive_response_headers.started":
            self._timer = threading.Timer(self._seconds, self._close)
            self._timer.daemon = True
            self._timer.start()
        elif event.startswith("http11.receive_response_headers.") and self._timer is not None:
            self._timer.cancel()

    def _close(self) -> None:
        self._passed = True
        if self._stream is not None:
            self._stream.close()
