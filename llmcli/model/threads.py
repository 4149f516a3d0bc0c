"""How many CPU threads to compute with: as many as the system lets this process run, which torch does not ask."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")  # where Linux tells what a container may use


def use_threads(threads: int | None, *, among: int = 1) -> None:
    """Compute on so many threads; None: on torch's own choice, but on no more than there is processor time for.

    ``among`` so many processes that compute at the same time, that time is divided.

    torch takes one a core. In a container that is allowed two of sixty-four, the others would only wait
    for each other. What OMP_NUM_THREADS says is left as it is.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        allowed = min(torch.get_num_threads(), allowed_cpus(CGROUP) or math.inf) / among
        if allowed < torch.get_num_threads():
            torch.set_num_threads(max(math.ceil(allowed), 1))


def allowed_cpus(cgroup: Path) -> float | None:
    """Processors' worth of time that a control group grants (version 2, or 1); None where it sets no limit."""
    try:
        if (cgroup / "cpu.max").is_file():
            quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = (
                (cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")
            )
        granted = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # none, "max", or no such system
        return None
    return granted if granted > 0 else None
