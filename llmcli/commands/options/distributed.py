"""A model split among several processes: those of torchrun, or those that --tensor-parallel starts."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmcli import generation, render
from llmcli.commands.options.common import MOST_PARALLEL, bundle
from llmcli.commands.options.model import ModelChoice, as_stored, in_float32, model_option
from llmcli.commands.shell.interrupt import import_torch
from llmcli.commands.shell.torchrun import RankInfo, torchrun_rank
from llmcli.errors import EXIT_FAILURE, EXIT_OK, LlmcliError, out_of_memory, usage_error

if TYPE_CHECKING:  # the module imports torch
    from llmcli.engine.tensor_parallel.process_group import ProcessGroup

JOIN_SECONDS = 10.0  # how long to wait for another rank to exit
PARENT_SECONDS = 1.0  # between checks that torchrun is still running


@dataclass(frozen=True)
class DistributedModelChoice(ModelChoice):
    """The values of the model options, where the model may be split among ranks."""

    tensor_parallel: int | None = None

    @property
    def ranks(self) -> int:
        """The number of processes that share the model."""
        return max(torchrun_rank().size, self.tensor_parallel or 1)

    def undivided(self) -> ModelChoice:
        return ModelChoice(**{field.name: getattr(self, field.name) for field in fields(ModelChoice)})

    def exclude(self, option: str, value: object) -> None:
        """Raise LlmcliError if the model is split and ``option``, which needs it undivided, has a ``value``."""
        if value and self.ranks > 1:
            raise usage_error(
                f"{option} needs the whole model in one process", f"omit {option} or do not split the model"
            )

    def open(self) -> generation.LoadedModel:
        """Load the model, or the first rank's share of it; the other ranks then serve until the command ends."""
        info = torchrun_rank()
        if info.size > 1 and self.tensor_parallel not in (None, info.size):
            raise usage_error(
                f"torchrun started {info.size} processes, but --tensor-parallel is {self.tensor_parallel}",
                "omit --tensor-parallel",
            )
        if self.ranks == 1:
            return super().open()
        self.exclude("--quantize", self.quantization)
        if info.size == 1:
            folder, adapter = self.find()
            local = replace(self, model=str(folder), adapter=None if adapter is None else str(adapter))
            loaded = local.load_share(join_group(local, start_ranks(local)))
        else:
            loaded = self.load_share(join_group(self, info))
        model: Any = loaded.model
        click.get_current_context().call_on_close(model.end)
        return loaded

    def load_share(self, group: ProcessGroup) -> generation.LoadedModel:
        """Load this rank's share of the model and wait for all ranks. Raises the errors of any rank."""
        folder, adapter = find_in_turn(self, group)
        return group.on_all(lambda: self.load(folder, adapter, group))


def find_in_turn(choice: ModelChoice, group: ProcessGroup) -> tuple[Path, Path | None]:
    """Return the folders of model and adapter once all ranks have found them. One process per machine downloads."""
    first = group.on_all(choice.find) if torchrun_rank().local_rank == 0 else group.on_all(lambda: None)
    return first or replace(choice, offline=True).find()


def join_group(choice: ModelChoice, info: RankInfo) -> ProcessGroup:
    """Connect to the other ranks until the command ends. Raises LlmcliError if they do not answer."""
    import_torch()
    from llmcli.engine.tensor_parallel.process_group import ProcessGroup, device_of
    from llmcli.model.device import use_threads

    if info.rendezvous is None:  # torchrun is the parent, also of the first rank
        end_with_parent()
    use_threads(choice.threads, among=info.local_size)
    group = ProcessGroup(device_of(choice.device, info.local_rank), info.rank, info.size, info.rendezvous)
    click.get_current_context().call_on_close(group.close)
    return group


def open_copies(choice: ModelChoice, info: RankInfo) -> tuple[generation.LoadedModel, ProcessGroup]:
    """Load a full copy of the model in each process that torchrun started. Raises the errors of any of them."""
    group = join_group(choice, info)
    folder, adapter = find_in_turn(choice, group)
    return group.on_all(lambda: choice.load(folder, adapter)), group


def start_ranks(choice: DistributedModelChoice) -> RankInfo:
    """Start the other ranks on this machine and return this process's own. Raises LlmcliError if one fails to start."""
    folder = tempfile.TemporaryDirectory(prefix="llmcli-", ignore_cleanup_errors=True)
    rendezvous, size = Path(folder.name) / "rendezvous", choice.ranks
    infos = [RankInfo(rank, size, rank, size, rendezvous) for rank in range(size)]
    spawn = get_context("spawn")
    pipes = [spawn.Pipe(duplex=False) for _ in infos[1:]]
    others = [
        spawn.Process(target=run_rank, args=(choice, info, ready), daemon=True)
        for info, (_, ready) in zip(infos[1:], pipes, strict=True)
    ]
    with ignoring_ctrl_c():  # the ranks inherit this: only this process handles Ctrl-C
        for other in others:
            other.start()

    def end() -> None:
        for other in others:
            other.join(JOIN_SECONDS)
        folder.cleanup()

    click.get_current_context().call_on_close(end)
    import_torch()
    for other, (started, _) in zip(others, pipes, strict=True):
        if started not in wait((started, other.sentinel)):
            for process in others:
                process.terminate()
            raise LlmcliError("a rank ended while it started", "there may be too little memory for this many processes")
    return infos[0]


def run_rank(choice: DistributedModelChoice, info: RankInfo, ready: Connection) -> None:
    """The main function of the processes that ``start_ranks`` starts."""
    end_with_parent()
    import_torch()
    ready.send(info.rank)
    with click.Context(click.Command("rank")):
        sys.exit(serve_leader(choice, info))


def end_with_parent() -> None:
    """End this process within seconds after its parent ends, whatever it is doing then.

    A parent that is killed cannot end its ranks, and they would wait for each other for minutes.
    """
    started, parent = parent_process(), os.getppid()

    def watch() -> None:
        if started is not None:  # by multiprocessing
            started.join()
        else:  # on Windows the number never changes
            while os.getppid() == parent:
                time.sleep(PARENT_SECONDS)
        os._exit(EXIT_FAILURE)

    threading.Thread(target=watch, daemon=True).start()


def follow(parameters: Mapping[str, Any], info: RankInfo) -> int:
    """``serve_leader`` with the model that a command's ``parameters`` choose."""
    chosen = {field.name: parameters[field.name] for field in fields(DistributedModelChoice)}
    return serve_leader(DistributedModelChoice(**chosen), info)


def serve_leader(choice: DistributedModelChoice, info: RankInfo) -> int:
    """Take part in the first rank's forward passes until it ends. Returns the exit code.

    The first rank reports errors that affect all ranks; this one prints only its own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        model: Any = choice.load_share(join_group(choice, info)).model
        model.serve()
    except LlmcliError:
        return EXIT_FAILURE
    except (RuntimeError, MemoryError) as error:
        click.echo(render.one_line(f"llmcli: rank {info.rank}: {out_of_memory(error) or error}"), err=True)
        return EXIT_FAILURE
    return EXIT_OK


@contextmanager
def ignoring_ctrl_c() -> Iterator[None]:
    """Ignore Ctrl-C in this process and in processes started inside the context."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


tensor_parallel_option = click.option(
    "--tensor-parallel",
    type=click.IntRange(1, MOST_PARALLEL),
    help="Split the model among N processes of this machine; each loads its share of the weights.",
)
distributed_model_options = bundle(
    "choice", DistributedModelChoice, model_option, *as_stored, tensor_parallel_option, title="Model"
)
distributed_view_options = bundle(
    "choice", DistributedModelChoice, model_option, *in_float32, tensor_parallel_option, title="Model"
)
