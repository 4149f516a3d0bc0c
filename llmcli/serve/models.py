"""The models of a server: one that is loaded from the start, and those that load when a client first asks for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from llmcli.errors import LlmcliError, out_of_memory
from llmcli.generation.loaded import LoadedModel
from llmcli.serve.errors import ApiError
from llmcli.serve.model_thread import run_apart
from llmcli.serve.scheduler import Scheduler
from llmcli.serve.wanted import Reader


@dataclass(frozen=True)
class Served:
    """A loaded model, the scheduler that runs it, and what reads requests to it."""

    loaded: LoadedModel
    scheduler: Scheduler
    reader: Reader


class Models:
    """Models by name. ``first`` answers requests that name none; ``others`` are functions that load the others.

    ``begin`` starts to serve a loaded model, and ``log`` receives a line about each that is loaded, or cannot be.
    """

    def __init__(
        self,
        first: Served,
        others: Mapping[str, Callable[[], LoadedModel]],
        begin: Callable[[LoadedModel], Served],
        log: Callable[[str], None],
    ) -> None:
        self.first, self.log = first, log
        self.loaded = {first.loaded.name: first}
        self._others, self._begin = dict(others), begin
        self._loading: dict[str, asyncio.Task[Served]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="load")

    @property
    def names(self) -> list[str]:
        """The names that clients can choose from."""
        return [self.first.loaded.name, *self._others]

    def check(self, name: str) -> None:
        """Raise ApiError for a name that no model has."""
        if name not in self.names:
            message = f"unknown model {name[:80]!r}; choose one of: {', '.join(self.names)}"
            raise ApiError(404, message, param="model", code="model_not_found")

    async def find(self, name: str | None) -> Served:
        """The model that a request names. Loads it first if necessary. Raises ApiError if that fails."""
        if name is None:
            return self.first
        self.check(name)
        if name not in self.loaded:
            if name not in self._loading:
                self._loading[name] = asyncio.create_task(self._load(name))
            await asyncio.shield(self._loading[name])
        return self.loaded[name]

    async def _load(self, name: str) -> Served:
        began = time.perf_counter()
        try:
            self.loaded[name] = await asyncio.get_running_loop().run_in_executor(
                self._thread, lambda: run_apart(lambda: self._begin(self._others[name]()))
            )
        except Exception as error:
            found = error if isinstance(error, LlmcliError) else out_of_memory(error)
            self.log(f"{name} cannot be loaded: {type(error).__name__ if found is None else found}")
            message = f"{name} cannot be loaded; see the server's log"
            raise ApiError(503, message, param="model", code="model_not_loaded") from None
        finally:
            del self._loading[name]
        self.log(f"{name} loaded in {time.perf_counter() - began:.1f} s")
        return self.loaded[name]
