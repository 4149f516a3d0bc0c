"""How much memory there is for a model: the machine's, a container's share of it, or a GPU's own."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

CGROUP = Path("/sys/fs/cgroup")  # where Linux tells what a container may use


@dataclass(frozen=True)
class Memory:
    """In bytes. ``physical`` is what the device has, ``limit`` what a container grants; None: not told, or none."""

    physical: int | None
    limit: int | None

    @property
    def usable(self) -> int | None:
        """The lesser of both."""
        return min((size for size in (self.physical, self.limit) if size is not None), default=None)


def memory_of(device: torch.device) -> Memory:
    """The memory that a model on ``device`` lies in."""
    if device.type == "cuda":
        return Memory(torch.cuda.get_device_properties(device).total_memory, None)
    return Memory(physical_memory(), memory_limit(CGROUP))


def physical_memory() -> int | None:
    """The machine's memory in bytes; None where the system does not tell."""
    if sys.platform == "win32":
        return _windows_memory()
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def memory_limit(cgroup: Path) -> int | None:
    """Bytes that a control group grants (version 2, or 1); None where it sets no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = int((cgroup / name).read_text(encoding="ascii"))
        except (OSError, ValueError):  # none, "max", or no such system
            continue
        return limit if 0 < limit < 2**62 else None  # version 1 writes "none" as a number no machine has
    return None


def _windows_memory() -> int | None:
    """``ullTotalPhys`` of GlobalMemoryStatusEx."""

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *(
                (name, ctypes.c_ulonglong)
                for name in ("physical", "free", "page_file", "page_file_free", "virtual", "virtual_free", "extended")
            ),
        )

    status = Status(length=ctypes.sizeof(Status))
    library: Any = ctypes
    kernel = library.windll.kernel32  # there on Windows alone
    return int(status.physical) if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else None
