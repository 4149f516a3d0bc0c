"""The socket, and the server's life: it starts, serves, and on SIGTERM or Ctrl-C finishes what runs."""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from llmcli.errors import EXIT_INTERRUPTED, LlmcliError, usage_error

if TYPE_CHECKING:
    from starlette.types import ASGIApp

BACKLOG = 256


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
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]  # Python repeats the address
        raise usage_error(f"cannot listen on {host}, port {port}: {reason}", kind="cannot-listen") from None
    return made


def run_server(
    app: ASGIApp,
    listener: socket.socket,
    *,
    ready: Callable[[], None],
    drain: Callable[[], None],
    finish: Callable[[], None],
    patience: float,
) -> bool:
    """Serve until a signal comes, and finish what runs. Returns whether the signal was Ctrl-C.

    Calls ``ready`` once signals are handled, ``drain`` in the handler of a signal, then ``finish``. A client that does
    not read its answer for ``patience`` seconds is disconnected.
    """
    import uvicorn

    from llmcli.serve.connection import IDLE_SECONDS, Connection

    class Server(uvicorn.Server):
        """Handles signals itself: uvicorn would end the process with the signal, not with 0."""

        pressed = False

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            numbers = [signal.SIGTERM, signal.SIGINT]
            previous = {number: signal.signal(number, self.handle_exit) for number in numbers}
            try:
                ready()
                yield
            finally:
                for number, handler in previous.items():
                    signal.signal(number, handler)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            finish()
            await super().shutdown(sockets)

        def handle_exit(self, sig: int, frame: Any) -> None:
            if self.should_exit and sig == signal.SIGINT:
                os._exit(EXIT_INTERRUPTED)  # not through tasks and threads that would have to end first
            self.pressed = self.pressed or sig == signal.SIGINT
            drain()
            super().handle_exit(sig, frame)

    make_connection: Any = partial(Connection, patience)
    config = uvicorn.Config(
        app,
        http=make_connection,
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
