"""The machine that a model runs on: device, dtype, CPU threads and memory."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmcli.errors import usage_error

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
CGROUP = Path("/sys/fs/cgroup")  # where Linux states a container's limits


def pick_device(name: str | torch.device) -> torch.device:
    """The device called ``name``; "auto" is a GPU if there is one, otherwise the CPU.

    Raises LlmcliError if the device is unknown or not available.
    """
    name = str(name)
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name != "auto" and name not in available:
        raise usage_error(f"{name!r} is not a device", f"known: auto, {', '.join(available)}")
    if name == "auto":
        return torch.device(next((device for device in ("cuda", "mps") if available[device]), "cpu"))
    if not available[name]:
        usable = ", ".join(device for device, is_available in available.items() if is_available)
        raise usage_error(f"device {name} is not available on this machine", f"available: {usable}")
    return torch.device(name)


def pick_dtype(name: str | torch.dtype, device: torch.device, stored: torch.dtype, float32_bytes: int) -> torch.dtype:
    """The dtype called ``name``; "auto" keeps the stored one if the device computes it at full speed.

    "precise" is float32 if the model, which then takes ``float32_bytes``, fits into half of the memory, else "auto".

    On a CPU, float16 becomes bfloat16 (float16 prefill is ten times slower), and both become float32 if the processor
    has no bfloat16 instructions. Raises LlmcliError if models do not run in the dtype.
    """
    choice = str(name).lower().removeprefix("torch.")
    if choice == "precise":
        choice = "float32" if fits_into_half(float32_bytes, device) else "auto"
    if choice != "auto":
        dtype = DTYPES.get(choice)
        if dtype is None:
            raise usage_error(f"{name!r} is not a supported dtype", f"known: auto, precise, {', '.join(DTYPES)}")
        return dtype
    if device.type == "cpu" and stored != torch.float32:
        return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    return stored


def use_threads(threads: int | None, *, among: int = 1) -> None:
    """Compute with ``threads`` CPU threads; None means torch's default, but no more than a container's quota.

    torch defaults to one thread per core. In a container with a quota of two of sixty-four cores, most threads would
    only wait for each other. ``among`` is the number of processes that share the quota. The environment variable
    OMP_NUM_THREADS takes precedence over the default.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        allowed = min(torch.get_num_threads(), allowed_cpus(CGROUP) or math.inf) / among
        if allowed < torch.get_num_threads():
            torch.set_num_threads(max(math.ceil(allowed), 1))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread inside the block.

    Operations on a single vector gain little from more threads, and torch's threads wait awake for some time after
    each operation: on processors that the threads of the native engine need.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def allowed_cpus(cgroup: Path) -> float | None:
    """The number of processors that a control group (version 2 or 1) allows; None if it sets no limit."""
    try:
        if (cgroup / "cpu.max").is_file():
            quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = (
                (cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")
            )
        granted = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no control group, "max", or another system
        return None
    return granted if granted > 0 else None


@dataclass(frozen=True)
class Memory:
    """Bytes of memory: the device's, None if unknown, and the limit of a container, None if there is none."""

    physical: int | None
    limit: int | None

    @property
    def usable(self) -> int | None:
        """The smaller of the two; None if neither is known."""
        return min((size for size in (self.physical, self.limit) if size is not None), default=None)


def memory_of(device: torch.device) -> Memory:
    """The memory for models on ``device``."""
    if device.type == "cuda":
        return Memory(torch.cuda.get_device_properties(device).total_memory, None)
    return Memory(physical_memory(), memory_limit(CGROUP))


def fits_into_half(size: int, device: torch.device) -> bool:
    """Whether ``size`` bytes are at most half of the device's usable memory; True if that is unknown."""
    usable = memory_of(device).usable
    return usable is None or size <= usable / 2


def physical_memory() -> int | None:
    """The machine's memory in bytes; None if the system does not report it."""
    if sys.platform == "win32":
        return _windows_memory()
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def memory_limit(cgroup: Path) -> int | None:
    """Bytes of memory that a control group (version 2 or 1) allows; None if it sets no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = int((cgroup / name).read_text(encoding="ascii"))
        except (OSError, ValueError):  # no control group, "max", or another system
            continue
        return limit if 0 < limit < 2**62 else None  # version 1 writes "no limit" as a huge number
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
    library: Any = ctypes  # which has ``windll`` on Windows only
    kernel = library.windll.kernel32
    return int(status.physical) if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else None
