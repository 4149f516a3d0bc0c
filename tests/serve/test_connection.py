"""Connections whose clients send nothing more, or do not read."""

from __future__ import annotations

import asyncio
import signal
import socket
from functools import partial
from typing import Any

import pytest

uvicorn = pytest.importorskip("uvicorn")
from uvicorn.server import ServerState  # noqa: E402

from llmcli.serve import connection, listen, run_server  # noqa: E402

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
PATIENCE = 0.2


async def answer(scope: Any, receive: Any, send: Any) -> None:
    size = 2**26 if scope["path"] == "/long" else 2
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(size).encode())]})
    await send({"type": "http.response.body", "body": b"x" * size})


@pytest.mark.parametrize(
    ("sent", "drained"),
    [
        (b"", False),
        (REQUEST[:20], False),
        (REQUEST + REQUEST[:20], False),
        (REQUEST.replace(b"/", b"/long", 1), False),
        (REQUEST.replace(b"/", b"/long", 1), True),
    ],
)
def test_no_client_holds_a_connection(sent: bytes, drained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with half a request, nor with an answer that it does not read, nor when the server ends."""
    monkeypatch.setattr(connection, "IDLE_SECONDS", 1e6 if drained else PATIENCE)

    async def serve() -> None:
        config = uvicorn.Config(answer, lifespan="off", ws="none", log_config=None)
        config.load()
        state, made = ServerState(), list[connection.Connection]()
        lost = asyncio.Event()

        class Watched(connection.Connection):
            def connection_made(self, transport: Any) -> None:
                made.append(self)
                super().connection_made(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                lost.set()

        patience = 1e6 if drained else PATIENCE
        factory = partial(Watched, patience, config=config, server_state=state, app_state={})
        server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()) as client:
            client.sendall(sent)
            while not made or state.total_requests < sent.count(b"\r\n\r\n"):
                await asyncio.sleep(0.01)
            if drained:
                made[0]._patience = PATIENCE
                made[0].shutdown()
            await asyncio.wait_for(lost.wait(), 30)
        assert not state.connections
        await asyncio.gather(*state.tasks)
        server.close()

    asyncio.run(serve())


def test_a_signal_is_handled_from_the_start() -> None:
    """SIGTERM shuts the server down cleanly as soon as it announces its address."""
    calls: list[str] = []

    def ready() -> None:
        calls.append("ready")
        signal.raise_signal(signal.SIGTERM)

    drain, finish = (partial(calls.append, name) for name in ("drain", "finish"))
    listener = listen("127.0.0.1", 0)
    assert run_server(answer, listener, ready=ready, drain=drain, finish=finish, patience=1.0) is False
    assert calls == ["ready", "drain", "finish"]
