"""A batch in several processes: each one writes a part file of its own, and the first one merges them at the end.

Parts of an earlier run that was stopped are merged before the next run begins, whatever its number of processes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.errors import EXIT_INTERRUPTED, EXIT_OK, LlmcliError, usage_error
from llmcli.files.atomic import replacing
from llmcli.generation.jobs.prompts import JobId
from llmcli.generation.jobs.results import Results

if TYPE_CHECKING:
    from llmcli.engine.tensor_parallel.process_group import ProcessGroup

Order = Mapping[JobId, int]  # the line of each job


@dataclass(frozen=True)
class PartFile:
    """The file of one process's results, and its size in bytes."""

    path: Path
    size: int


class SharedResults:
    """The results of several processes: this one's part, and the file that the first one merges all parts into.

    With ``order``, the merged file is in the order of the jobs' lines. Parts of earlier runs are merged at once.
    """

    def __init__(self, group: ProcessGroup, path: Path, order: Order | None) -> None:
        self._group, self._path, self._order = group, path, order
        self._merge()
        done = group.on_all(lambda: Results(path).done)
        self.part = Results(part_path(path, group.rank))
        self.part.done = done  # the results of all processes count as done

    def finish(self, code: int) -> int:
        """Wait for the other processes and merge all parts. Returns the exit code, given that of this process."""
        if code == EXIT_INTERRUPTED:
            return code
        everyone = self._group.exchange((PartFile(self.part.path, self.part.size), code))
        if self._group.leads:
            check_parts([part for part, _ in everyone])
        self._merge()
        return max(code for _, code in everyone) if self._group.leads else EXIT_OK

    def _merge(self) -> None:
        self._group.on_all(lambda: merge(self._path, self._order) if self._group.leads else None)


def part_path(path: Path, rank: int) -> Path:
    """The part file of one process."""
    return path.with_name(f"{path.name}.rank{rank}")


def parts_of(path: Path) -> list[Path]:
    """The part files that exist for a file of results."""
    if not path.parent.is_dir():
        return []
    name = re.compile(re.escape(path.name) + r"\.rank\d+")
    return sorted(part for part in path.parent.iterdir() if name.fullmatch(part.name))


def merge(path: Path, order: Order | None) -> None:
    """Move the results of all parts into the file, in ``order`` of the jobs if given, and delete the parts.

    If the process is killed here, nothing is lost: the file is replaced as a whole, and a result that is both in it and
    in a part counts once. Raises the errors of ``Results``.
    """
    parts = parts_of(path)
    lines: dict[JobId, tuple[Path, int, int]] = {}  # the file of each result, and where its line begins and ends
    for file in [path, *parts]:
        for id, start, end in _lines(file):
            lines.setdefault(id, (file, start, end))
    if order is not None:
        lines = {id: lines[id] for id in sorted(lines, key=lambda id: order.get(id, len(order)))}
    if parts or list(lines) != list(Results(path).done):
        with replacing(path) as merged:
            for file, start, end in lines.values():
                with file.open("rb") as source:
                    source.seek(start)
                    merged.write(source.read(end - start))
    for part in parts:
        part.unlink(missing_ok=True)


def _lines(path: Path) -> Iterator[tuple[JobId, int, int]]:
    """The id of each complete result in a file, and where its line begins and ends."""
    Results(path)  # raises unless all lines are results
    if not path.exists():
        return
    with path.open("rb") as lines:
        start = 0
        for line in lines:
            if line.endswith(b"\n"):
                yield json.loads(line)["id"], start, start + len(line)
            start += len(line)


def check_parts(parts: list[PartFile]) -> None:
    """Raise LlmcliError if a part does not have the size that its process wrote: then they do not share a folder."""
    for rank, part in enumerate(parts):
        if not part.path.exists() or part.path.stat().st_size != part.size:
            raise LlmcliError(
                f"{part.path}, the results of rank {rank}, is missing here or incomplete",
                "name a file in a folder that all machines share",
            )


def check_name(path: Path) -> None:
    """Raise LlmcliError if the name belongs to a part file."""
    if re.fullmatch(r".*\.rank\d+", path.name):
        raise usage_error(f"{path} has the name of a part file", "name another file")
