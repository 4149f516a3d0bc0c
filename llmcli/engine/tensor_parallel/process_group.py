"""The processes (ranks) that compute one model together, and their messages.

They communicate through torch.distributed: gloo between CPUs, NCCL between GPUs. Rank 0 leads: only it samples and
interacts with the user. The other ranks wait for its messages and take part in every pass.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from llmcli.errors import LlmcliError, usage_error
from llmcli.model.device import pick_device

T = TypeVar("T")

JOIN_TIMEOUT = timedelta(minutes=5)  # for every rank to start and import torch
MESSAGE_TIMEOUT = timedelta(days=365)  # for the leader's next message, which may wait for the user
PASS_TIMEOUT = timedelta(seconds=25)  # for all ranks to reach the same point of a pass, unless one is lost
stores: Any = dist  # torch's types do not export FileStore
MESSAGE_SIZE = 64  # integers per message: a token's pass and short prompts fit into one


class ProcessGroup:
    """This process as ``rank`` of ``size``.

    ``device`` is where this rank computes. The ranks find each other through the file ``rendezvous``, or through the
    environment variables that torchrun sets. Raises LlmcliError if they do not find each other; every method does if a
    rank is lost.
    """

    def __init__(self, device: torch.device, rank: int, size: int, rendezvous: Path | None = None) -> None:
        self.device, self.rank, self.size = device, rank, size
        if rendezvous is not None:  # all ranks are on this machine
            os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
        with _lost("the ranks did not find each other", "check that all of them run, with the same version of torch"):
            store = None if rendezvous is None else stores.FileStore(str(rendezvous), size)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=JOIN_TIMEOUT)
        self.leads = self.rank == 0
        self.broken = False
        backend = "nccl" if device.type == "cuda" else "gloo"
        self._pass_group: Any = dist.new_group(backend=backend, timeout=PASS_TIMEOUT)
        self._message_group: Any = dist.new_group(backend="gloo", timeout=MESSAGE_TIMEOUT)

    def sum(self, x: Tensor) -> Tensor:
        """Replace x with the sum of all ranks' x, and return it."""
        with self._guarded():
            dist.all_reduce(x, group=self._pass_group)
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        """Replace x with the first rank's x on every rank, and return it."""
        with self._guarded():
            dist.broadcast(x, 0, group=self._pass_group)
        return x

    def gather(self, x: Tensor) -> list[Tensor]:
        """Every rank's x, all of the same shape, on the first rank; an empty list on the others."""
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.leads else None
        with self._guarded():
            dist.gather(x, parts, dst=0, group=self._pass_group)
        return parts or []

    def send(self, *numbers: int) -> None:
        """Send the leader's message to all other ranks."""
        message = torch.zeros(MESSAGE_SIZE, dtype=torch.int64)
        message[: len(numbers)] = torch.tensor(numbers)
        with self._guarded():
            dist.broadcast(message, 0, group=self._message_group)

    def receive(self) -> list[int]:
        """Wait for the leader's next message, however long it takes."""
        message = torch.zeros(MESSAGE_SIZE, dtype=torch.int64)
        with self._guarded():
            dist.broadcast(message, 0, group=self._message_group)
        numbers: list[int] = message.tolist()
        return numbers

    def exchange(self, value: T) -> list[T]:
        """Every rank's value, in order of rank; waits until all ranks have called this, however long that takes."""
        values: list[Any] = [None] * self.size
        with self._guarded():
            dist.all_gather_object(values, value, group=self._message_group)
        return values

    def on_all(self, work: Callable[[], T]) -> T:
        """Run ``work`` and return its result once every rank is done. An LlmcliError on any rank is raised on all."""
        done, error_parts = None, None
        try:
            done = work()
        except LlmcliError as error:
            error_parts = (error.message, error.hint, error.kind, error.exit_code)
        for rank, failure in enumerate(self.exchange(error_parts)):
            if failure is not None:
                message, hint, kind, code = failure
                raise LlmcliError(f"rank {rank}: {message}" if rank else message, hint, kind=kind, exit_code=code)
        return cast(T, done)

    def close(self) -> None:
        """Leave the group; a process that exits without this may crash."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def undivided_pass(self) -> Iterator[None]:
        """Run a pass, which every rank must complete: Ctrl-C is deferred, and after a failure the group is broken."""
        with _uninterrupted():
            try:
                yield
            except BaseException:
                self.broken = True
                raise

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Mark the group as broken if another rank is lost."""
        if self.broken:
            raise LlmcliError("the other ranks have ended", "start again")
        try:
            with _lost("another rank has ended or does not respond", "start again"):
                yield
        except LlmcliError:
            self.broken = True
            raise


def device_of(name: str, local_rank: int) -> torch.device:
    """The device of the rank ``local_rank`` of this machine, for a requested device: its own GPU, or the CPU.

    Raises LlmcliError if there are too few GPUs, or ranks cannot use the device.
    """
    if name == "mps":
        raise usage_error("ranks compute on cpu or cuda, not on mps", kind="ranks-need-cpu-or-cuda")
    device = pick_device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)
    if device.type == "cpu":
        return device
    if local_rank >= torch.cuda.device_count():
        raise usage_error(f"only {torch.cuda.device_count()} GPUs are available for the ranks here", "use fewer ranks")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _loopback() -> str:
    """The name of the loopback network interface."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), names[0])


@contextmanager
def _lost(message: str, hint: str) -> Iterator[None]:
    """Raise torch.distributed's errors as an LlmcliError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # torch raises no specific error
        raise LlmcliError(message, hint) from error


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Defer Ctrl-C until the end of the block."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    pressed = []
    signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed:
        signal.raise_signal(signal.SIGINT)
