"""This process's rank among the processes that run one command together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RankInfo:
    """The position of a process among ``size`` processes, and among the ``local_size`` processes of its machine.

    Ranks count from 0. The processes connect through the file ``rendezvous`` or, if it is None, through the environment
    variables that torchrun sets.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    rendezvous: Path | None = None


def torchrun_rank() -> RankInfo:
    """Return this process's rank as torchrun set it, or rank 0 of 1 if torchrun did not start the process."""
    if "MASTER_ADDR" not in os.environ:  # other programs set the other variables too
        return RankInfo()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    values = [os.environ.get(name, "") for name in names]
    if not all(value.isdecimal() for value in values):
        return RankInfo()
    rank, size, local_rank, local_size = map(int, values)
    return RankInfo(rank, size, local_rank, local_size)
