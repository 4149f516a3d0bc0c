"""A model that several processes share: those that torchrun started, or that --tensor-parallel starts."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands.options.common import bundle
from llmcli.commands.options.model import ModelChoice, model_option, opening_options
from llmcli.commands.shell.interrupt import import_torch
from llmcli.commands.shell.torchrun import World, torchrun
from llmcli.errors import EXIT_FAILURE, EXIT_OK, LlmcliError, out_of_memory, usage_error

if TYPE_CHECKING:
    from llmcli.engine.tensor_parallel.process_group import ProcessGroup
    from llmcli.generation.loaded import LoadedModel

FAREWELL = 10.0  # seconds for another process to end by itself


@dataclass(frozen=True)
class SplitChoice(ModelChoice):
    """What was said about a model that may be split among ranks."""

    tensor_parallel: int | None

    @property
    def ranks(self) -> int:
        """How many processes share the model."""
        return max(torchrun().size, self.tensor_parallel or 1)

    def alone(self) -> ModelChoice:
        return ModelChoice(**{field.name: getattr(self, field.name) for field in fields(ModelChoice)})

    def exclude(self, option: str, given: object) -> None:
        """Raise where the model is split and an option is given that needs it whole."""
        if given and self.ranks > 1:
            raise usage_error(f"{option} needs the whole model in one process", f"leave out {option}, or do not split")

    def open(self) -> LoadedModel:
        """The model, or the first rank's share of it; the other ranks then take part until the command ends."""
        world = torchrun()
        if world.size > 1 and self.tensor_parallel not in (None, world.size):
            raise usage_error(
                f"torchrun started {world.size} processes, --tensor-parallel asks for {self.tensor_parallel}",
                "leave out --tensor-parallel",
            )
        if self.ranks == 1:
            return super().open()
        self.exclude("--quantize", self.quantization)
        if world.size == 1:
            folder, adapter = self.find()
            found = replace(self, model=str(folder), adapter=None if adapter is None else str(adapter))
            loaded = found.share(meet(found, start(found)))
        else:
            loaded = self.share(meet(self, world))
        model: Any = loaded.model
        click.get_current_context().call_on_close(model.end)
        return loaded

    def share(self, group: ProcessGroup) -> LoadedModel:
        """This rank's share, once all ranks have theirs. Errors: those of any rank."""
        folder, adapter = find_in_turn(self, group)
        return group.on_all(lambda: self.load(folder, adapter, group))


def find_in_turn(choice: ModelChoice, group: ProcessGroup) -> tuple[Path, Path | None]:
    """The model's folders, once all ranks have found them; one process of each machine downloads what must be."""
    first = group.on_all(choice.find) if torchrun().local_rank == 0 else group.on_all(lambda: None)
    return first or replace(choice, offline=True).find()


def meet(choice: ModelChoice, world: World) -> ProcessGroup:
    """Join the other processes, until the command ends. Errors: they are not there."""
    import_torch()
    from llmcli.engine.tensor_parallel.process_group import ProcessGroup, device_of
    from llmcli.model.device import use_threads

    use_threads(choice.threads, among=world.local_size)
    group = ProcessGroup(device_of(choice.device, world.local_rank), world.rank, world.size, world.meeting)
    click.get_current_context().call_on_close(group.close)
    return group


def open_each(choice: ModelChoice, world: World) -> tuple[LoadedModel, ProcessGroup]:
    """The whole model in each of the processes that torchrun started. Errors: those of any of them."""
    group = meet(choice, world)
    folder, adapter = find_in_turn(choice, group)
    return group.on_all(lambda: choice.load(folder, adapter)), group


def start(choice: SplitChoice) -> World:
    """Start the other processes on this machine; this one's place among all. Errors: one that does not start."""
    place = tempfile.TemporaryDirectory(prefix="llmcli-", ignore_cleanup_errors=True)
    meeting, size = Path(place.name) / "meeting", choice.ranks
    worlds = [World(rank, size, rank, size, meeting) for rank in range(size)]
    spawn = get_context("spawn")
    pipes = [spawn.Pipe(duplex=False) for _ in worlds[1:]]
    others = [
        spawn.Process(target=begin, args=(choice, world, ready), daemon=True)
        for world, (_, ready) in zip(worlds[1:], pipes, strict=True)
    ]
    with ignoring_ctrl_c():  # as they then do too: Ctrl-C is for this process alone
        for other in others:
            other.start()

    def end() -> None:
        for other in others:
            other.join(FAREWELL)
        place.cleanup()

    click.get_current_context().call_on_close(end)
    import_torch()
    for other, (heard, _) in zip(others, pipes, strict=True):
        if heard not in wait((heard, other.sentinel)):
            for process in others:
                process.terminate()
            raise LlmcliError("another rank ended before it began", "there may be too little memory for so many")
    return worlds[0]


def begin(choice: SplitChoice, world: World, ready: Connection) -> None:
    """Where the processes that ``start`` makes begin."""
    import_torch()
    ready.send(world.rank)
    with click.Context(click.Command("rank")):
        sys.exit(follow(choice, world))


def follow(choice: SplitChoice, world: World) -> int:
    """Take part in the first rank's passes until it ends; the exit code.

    What goes wrong for all ranks the first one tells; what only this one knows is told here.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        model: Any = choice.share(meet(choice, world)).model
        model.serve()
    except LlmcliError:
        return EXIT_FAILURE
    except (RuntimeError, MemoryError) as error:
        click.echo(f"llmcli: rank {world.rank}: {out_of_memory(error) or error}", err=True)
        return EXIT_FAILURE
    return EXIT_OK


@contextmanager
def ignoring_ctrl_c() -> Iterator[None]:
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


split_options = bundle(
    "choice",
    SplitChoice,
    model_option,
    *opening_options,
    click.option(
        "--tensor-parallel",
        type=click.IntRange(min=1),
        help="Split the model among so many processes of this machine, each with its share of the weights.",
    ),
    title="Model",
)
