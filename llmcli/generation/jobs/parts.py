"""A file of results that several processes write: each in a part of its own, put together at the end.

Parts that a run left behind are put together before the next one begins, whatever number of processes it has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmcli.errors import LlmcliError, usage_error
from llmcli.files.atomic import replacing
from llmcli.generation.jobs.files import Results

Id = str | int


@dataclass(frozen=True)
class Part:
    """Where a process keeps its results, and how many bytes of it there are."""

    path: Path
    size: int


def part_path(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.name}.rank{rank}")


def parts_of(path: Path) -> list[Path]:
    """The parts of a file of results that are there."""
    if not path.parent.is_dir():
        return []
    name = re.compile(re.escape(path.name) + r"\.rank\d+")
    return sorted(part for part in path.parent.iterdir() if name.fullmatch(part.name))


def merge(path: Path, order: Mapping[Id, int] | None) -> None:
    """Take the results of all parts into the file, and the parts away; in ``order`` of their jobs, if that is given.

    Whoever is killed here loses nothing: the file is replaced whole, and what is in it and in a part counts once.
    Errors: those of ``Results``.
    """
    parts = parts_of(path)
    places: dict[Id, tuple[Path, int, int]] = {}  # where each result's line begins and ends
    for file in [path, *parts]:
        for id, start, end in _lines(file):
            places.setdefault(id, (file, start, end))
    if order is not None:
        places = {id: places[id] for id in sorted(places, key=lambda id: order.get(id, len(order)))}
    if parts or list(places) != list(Results(path).done):
        with replacing(path) as temporary, temporary.open("wb") as written:
            for file, start, end in places.values():
                with file.open("rb") as read:
                    read.seek(start)
                    written.write(read.read(end - start))
    for part in parts:
        part.unlink(missing_ok=True)


def _lines(path: Path) -> Iterator[tuple[Id, int, int]]:
    """Each whole result of a file: its id, and where its line begins and ends."""
    Results(path)  # that all of them are results
    if not path.exists():
        return
    with path.open("rb") as lines:
        start = 0
        for line in lines:
            if line.endswith(b"\n"):
                yield json.loads(line)["id"], start, start + len(line)
            start += len(line)


def check_parts(parts: list[Part]) -> None:
    """Raise where a process's part is not as it left it: then the processes do not see the same files."""
    for rank, part in enumerate(parts):
        if not part.path.exists() or part.path.stat().st_size != part.size:
            raise LlmcliError(
                f"{part.path}, the results of rank {rank}, cannot be seen here as they were written",
                "name a file in a folder that all machines share",
            )


def check_name(path: Path) -> None:
    """Raise at a name that is that of another file's part."""
    if re.fullmatch(r".*\.rank\d+", path.name):
        raise usage_error(f"{path} has the name of a part of results", "name another file")
