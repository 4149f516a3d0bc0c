"""``batch`` in several processes, which torchrun started: what each of them writes, and putting it together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.commands.options.distributed import open_each
from llmcli.commands.options.model import ModelChoice
from llmcli.commands.shell.torchrun import World
from llmcli.errors import EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from llmcli.generation.jobs.files import Results
    from llmcli.generation.loaded import LoadedModel


class Share:
    """What one of several processes writes, in a part of its own, and how the first one puts the parts together."""

    def __init__(self, world: World, target: Path, order: Mapping[str | int, int] | None) -> None:
        self.world, self.target, self.order = world, target, order

    def open(self, choice: ModelChoice) -> LoadedModel:
        """The model, once all have theirs, and what other runs left is put together."""
        loaded, self._ranks = open_each(choice, self.world)
        self._merge()
        return loaded

    def results(self) -> Results:
        """Where to write to; what is done by anybody counts as done there."""
        from llmcli.generation.jobs.files import Results
        from llmcli.generation.jobs.parts import part_path

        done = self._ranks.on_all(lambda: Results(self.target).done)
        self._part = Results(part_path(self.target, self.world.rank))
        self._part.done = done
        return self._part

    def end(self, code: int) -> int:
        """Wait for the others, and put everything together; the exit code for all of them."""
        from llmcli.generation.jobs.parts import Part, check_parts

        if code == EXIT_INTERRUPTED:
            return code
        told = self._ranks.exchange((Part(self._part.path, self._part.size), code))
        if self._ranks.leads:
            check_parts([part for part, _ in told])
        self._merge()
        return max(code for _, code in told) if self._ranks.leads else EXIT_OK

    def _merge(self) -> None:
        from llmcli.generation.jobs.parts import merge

        self._ranks.on_all(lambda: merge(self.target, self.order) if self._ranks.leads else None)
