"""A connection of the server, which ends when its client sends no request or does not read the answer."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE_SECONDS = 30  # for a client to send a complete head of a request


class Connection(H11Protocol):
    """HTTP/1.1 that waits ``IDLE_SECONDS`` for each request, and ``patience`` seconds for the client to read."""

    def __init__(self, patience: float, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._patience = patience
        self._idle: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # pause_writing is then called for any byte that cannot be sent
        self._limit_idleness()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._limit_idleness()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._limit_idleness()

    def _limit_idleness(self) -> None:
        """Count the time from now or from earlier, unless a request is being answered."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and self._idle is not None:
            self._idle.cancel()
            self._idle = None
        elif not answering and self._idle is None:
            self._idle = self.loop.call_later(IDLE_SECONDS, self.transport.close)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self._patience, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def shutdown(self) -> None:
        """Finish the answer, but no later than ``patience`` seconds from now."""
        super().shutdown()
        self.loop.call_later(self._patience, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._idle, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
