"""The processes that compute one model together, each a rank, and what they say to each other.

All of it is torch.distributed's: gloo between CPUs, NCCL between GPUs. The first rank, 0, leads: it alone
samples and talks to the user. The others wait for its messages and take part in every pass.
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

JOIN = timedelta(minutes=5)  # for every rank to start and import torch
PATIENCE = timedelta(days=365)  # of ranks that wait for a message: a user may think for long
PASS = timedelta(seconds=25)  # for the others to reach the same place of a pass, after which one must be lost
stores: Any = dist
MESSAGE = 64  # numbers of a message: a token's pass, and short prompts, need no second one


class Ranks:
    """This process among all of them, ``rank`` of ``size``. Errors: they do not find each other, or one is lost.

    ``device`` is where this one computes. They find each other through the file ``meeting``, or by the variables
    that torchrun sets.
    """

    def __init__(self, device: torch.device, rank: int, size: int, meeting: Path | None = None) -> None:
        self.device, self.rank, self.size = device, rank, size
        if meeting is not None:  # all of them on this machine
            os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
        with _lost("the ranks did not find each other", "see that all of them run, with the same torch"):
            store = None if meeting is None else stores.FileStore(str(meeting), size)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=JOIN)
        self.leads = self.rank == 0
        self.broken = False
        backend = "nccl" if device.type == "cuda" else "gloo"
        self._passes: Any = dist.new_group(backend=backend, timeout=PASS)
        self._messages: Any = dist.new_group(backend="gloo", timeout=PATIENCE)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x, in its place."""
        with self._kept():
            dist.all_reduce(x, group=self._passes)
        return x

    def spread(self, x: Tensor) -> Tensor:
        """The first rank's x, in the place of everyone's."""
        with self._kept():
            dist.broadcast(x, 0, group=self._passes)
        return x

    def collect(self, x: Tensor) -> list[Tensor]:
        """Every rank's x, all of one shape, on the first rank; nothing on the others."""
        found = [torch.empty_like(x) for _ in range(self.size)] if self.leads else None
        with self._kept():
            dist.gather(x, found, dst=0, group=self._passes)
        return found or []

    def tell(self, *numbers: int) -> None:
        """The leader's message to all others."""
        message = torch.zeros(MESSAGE, dtype=torch.int64)
        message[: len(numbers)] = torch.tensor(numbers)
        with self._kept():
            dist.broadcast(message, 0, group=self._messages)

    def hear(self) -> list[int]:
        """The leader's next message, however long it takes."""
        message = torch.zeros(MESSAGE, dtype=torch.int64)
        with self._kept():
            dist.broadcast(message, 0, group=self._messages)
        told: list[int] = message.tolist()
        return told

    def share(self, told: T) -> list[T]:
        """What every rank tells, in their order, once all have told it, however long that takes."""
        everyone: list[Any] = [None] * self.size
        with self._kept():
            dist.all_gather_object(everyone, told, group=self._messages)
        return everyone

    def agreed(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, once it is done on every rank. Errors: those of any of them, at all of them."""
        done, told = None, None
        try:
            done = work()
        except LlmcliError as error:
            told = (error.message, error.hint, error.exit_code)
        for rank, failure in enumerate(self.share(told)):
            if failure is not None:
                message, hint, code = failure
                raise LlmcliError(f"rank {rank}: {message}" if rank else message, hint, exit_code=code)
        return cast(T, done)

    def close(self) -> None:
        """Part from the others; a process that ends without may crash at its end."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def together(self) -> Iterator[None]:
        """A pass, of which no rank may leave out anything: after a failure there can be no other."""
        with _undivided():
            try:
                yield
            except BaseException:
                self.broken = True
                raise

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Whoever loses another rank has lost all of them."""
        if self.broken:
            raise LlmcliError("the other ranks are gone", "start again")
        try:
            with _lost("another rank has ended, or does not answer", "all end with it: start again"):
                yield
        except LlmcliError:
            self.broken = True
            raise


def device_of(name: str, local_rank: int) -> torch.device:
    """Where one of a machine's ranks computes, by the device asked for: each on a GPU of its own, or on the CPU.

    Errors: too few GPUs, or a device that ranks cannot share.
    """
    if name == "mps":
        raise usage_error("ranks compute on cpu or cuda, not on mps", "give --device cpu")
    device = pick_device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)
    if device.type == "cpu":
        return device
    if local_rank >= torch.cuda.device_count():
        raise usage_error(f"there are only {torch.cuda.device_count()} GPUs for the ranks here", "use fewer ranks")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _loopback() -> str:
    """The network interface that leads nowhere else."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), names[0])


@contextmanager
def _lost(message: str, hint: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:  # torch has no error of its own for this
        raise LlmcliError(message, hint) from error


@contextmanager
def _undivided() -> Iterator[None]:
    """Ctrl-C waits until what is inside is over."""
    former = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(former):
        yield
        return
    pressed = []
    signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
    if pressed:
        signal.raise_signal(signal.SIGINT)
