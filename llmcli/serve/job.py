"""One HTTP request: it submits tasks to the scheduler, and receives their events in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

from starlette.requests import Request as HttpRequest

from llmcli.serve.errors import ApiError
from llmcli.serve.scheduler import Call, Event, Progress, Scheduler, Task
from llmcli.serve.wanted import Wanted


class ClientGone(Exception):
    """The client closed the connection."""


class Job:
    """The work for one request, as an async context manager: leaving it cancels what is still running.

    ``seconds`` limits the whole request. Awaiting raises ClientGone if the client disconnects, and ApiError (504) when
    the time is up.
    """

    def __init__(self, scheduler: Scheduler, request: HttpRequest, client: str, seconds: float) -> None:
        self.scheduler, self.client, self.seconds = scheduler, client, seconds
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._tasks: list[Task | Call] = []
        self._left = False

    async def __aenter__(self) -> Job:
        self._watch = asyncio.create_task(self._wait_for_end())
        late = ApiError(504, f"the answer took longer than {self.seconds:g} s", code="timeout")
        self._timer = self._loop.call_later(self.seconds, self._events.put_nowait, late)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._left = True
        self._timer.cancel()
        self._watch.cancel()
        self.scheduler.withdraw(self._tasks)

    def check(self) -> None:
        """Raise ClientGone if the response is no longer wanted. Long computations call it between their parts."""
        if self._left:
            raise ClientGone

    async def compute(self, function: Callable[[], Any]) -> Any:
        """The result of a function that runs in the scheduler's thread, between two steps. Raises what it raises."""

        def run() -> None:
            try:
                self._deliver([function()])
            except Exception as error:
                self._deliver(error)

        self._submit([Call(self.client, run)])
        (result,) = await self._next()
        return result

    async def progress(self, wanted: Wanted) -> AsyncGenerator[Progress]:
        """Yield the steps of all texts as they are generated. Raises the ApiError that ends them early."""
        count = len(wanted.prompts) if wanted.max_tokens else 0
        tasks = [
            Task(self.client, wanted.requests(number), self._deliver, wanted.alternatives, prompt.generated)
            for number, prompt in enumerate(wanted.prompts[:count])
        ]
        self._submit(tasks)
        left = count * wanted.count
        while left:
            event: Progress = await self._next()
            left -= event.finish is not None
            yield event

    def _submit(self, tasks: list[Task] | list[Call]) -> None:
        self.scheduler.submit(tasks, admitted=bool(self._tasks))
        self._tasks += tasks

    async def _next(self) -> Any:
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event

    def _deliver(self, event: Event | Exception | list[Any]) -> None:
        """Called in the scheduler's thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def _wait_for_end(self) -> None:
        while True:
            message = await self._request.receive()
            if message["type"] == "http.disconnect":
                self._events.put_nowait(ClientGone())
                return
