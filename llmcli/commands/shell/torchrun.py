"""The processes that run one command together: which of them this one is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class World:
    """A process's ``rank``, from 0, among ``size``, and likewise among those of its machine.

    They find each other through the file ``meeting``; where that is None, by torchrun's variables.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    meeting: Path | None = None


def torchrun() -> World:
    """What torchrun tells a process that it started; a process started alone is the only one."""
    if "MASTER_ADDR" not in os.environ:  # the other variables alone may be anybody's
        return World()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    told = [os.environ.get(name, "") for name in names]
    if not all(value.isdecimal() for value in told):
        return World()
    rank, size, local_rank, local_size = map(int, told)
    return World(rank, size, local_rank, local_size)
