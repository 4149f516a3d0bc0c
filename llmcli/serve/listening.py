"""The socket, and the server's life: it starts, serves, and on SIGTERM or Ctrl-C finishes what runs."""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmcli.errors import LlmcliError, usage_error

if TYPE_CHECKING:
    from starlette.types import ASGIApp

BACKLOG = 256
IDLE_SECONDS = 30  # that a connection may stay open without a request


def check_installed() -> None:
    """Raise LlmcliError if the libraries of the server are not installed."""
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise LlmcliError(f"{' and '.join(missing)} not installed", 'pip install "llmcli[serve]"')


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach ``host``."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections; ``port`` 0 is any free one. Raises LlmcliError if that is not possible."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        made = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise usage_error(f"cannot listen on {host}, port {port}: {reason}", kind="cannot-listen") from None
    return made


def run_server(app: ASGIApp, listener: socket.socket, drain: Callable[[], None]) -> bool:
    """Serve until a signal comes, call ``drain``, and finish what runs. Returns whether the signal was Ctrl-C."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        """Closes a connection that sends no complete request for a while."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._patience = self.loop.call_later(IDLE_SECONDS, transport.close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None:
                self._patience.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            self._patience.cancel()
            super().connection_lost(exc)

    class Server(uvicorn.Server):
        """Handles signals itself: uvicorn would end the process with the signal, not with 0."""

        pressed = False

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            numbers = [signal.SIGTERM, signal.SIGINT]
            previous = {number: signal.signal(number, self.handle_exit) for number in numbers}
            try:
                yield
            finally:
                for number, handler in previous.items():
                    signal.signal(number, handler)

        def handle_exit(self, sig: int, frame: Any) -> None:
            self.pressed = self.pressed or sig == signal.SIGINT
            drain()
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        h11_max_incomplete_event_size=2**16,
    )
    server = Server(config)
    asyncio.run(server.serve(sockets=[listener]))
    return server.pressed
