"""The options that say which model runs, where and how; and opening it."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmcli.commands.options.common import Choice, Line, bundle, device_option, offline_option, threads_option
from llmcli.commands.shell.help import Decorator
from llmcli.commands.shell.interrupt import import_torch
from llmcli.errors import LlmcliError, usage_error

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from llmcli.engine.tensor_parallel.process_group import ProcessGroup
    from llmcli.generation.loaded import LoadedModel
    from llmcli.storage.quantize import Quantization

QUANTIZATIONS = ("int8", "int4")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelChoice:
    """What was said about the model; ``open`` loads it."""

    model: str | None
    adapter: str | None
    offline: bool
    device: str
    dtype: str
    quantization: Quantization | None
    threads: int | None

    def open(self) -> LoadedModel:
        """Find and load the model, with a bar for what takes long."""
        found = self.find()
        import_torch()
        from llmcli.model.device import use_threads

        use_threads(self.threads)
        return self.load(*found)

    def alone(self) -> ModelChoice:
        """The same for one process."""
        return self

    def find(self) -> tuple[Path, Path | None]:
        """The folders of the model and of its adapter, if it has one; shows the download if there is one."""
        folder = find_model(self.model, self.offline)
        return folder, find_model(self.adapter, self.offline) if self.adapter is not None else None

    def load(self, folder: Path, adapter: Path | None, group: ProcessGroup | None = None) -> LoadedModel:
        """Read the model, or this rank's share of it."""
        from llmcli.generation.loaded import load
        from llmcli.hub.cache import name_of
        from llmcli.render.progress import LoadingProgress
        from llmcli.render.terminal import note

        with LoadingProgress(sys.stderr) as view:
            loaded = load(
                folder,
                name=" + ".join(name_of(part) for part in (folder, adapter) if part is not None),
                adapter=adapter,
                device=self.device,
                dtype=self.dtype,
                quantization=self.quantization,
                group=group,
                progress=view if group is None or group.leads else None,
            )
        tokens, rows = loaded.tokenizer.size, loaded.model.config.vocab_size
        if tokens > rows and (group is None or group.leads):
            note(f"the tokenizer has {tokens} tokens, the model {rows}: is it another model's?", sys.stderr)
        return loaded


def find_model(name: str | None, offline: bool) -> Path:
    """The folder of the model, the shipped one if none is named; shows the download if there is one."""
    from llmcli import hub
    from llmcli.render.progress import DownloadProgress

    name = hub.default_model() if name is None else name
    with DownloadProgress(name, sys.stderr) as view:
        return hub.find(name, offline=offline, progress=view)


def pair(
    models: tuple[str, ...],
    adapter: str | None,
    offline: bool,
    device: str,
    dtype: str,
    quantization: Quantization | None,
    threads: int | None,
) -> tuple[ModelChoice, ModelChoice]:
    """Two models to compare: both named, or one without and with an adapter. Errors: neither."""
    if len(models) != (2 if adapter is None else 1):
        raise usage_error("two models are compared", "give -m twice, or once with --adapter")
    first = ModelChoice(models[0], None, offline, device, dtype, quantization, threads)
    return first, replace(first, model=models[-1], adapter=adapter)


def complete_model(ctx: click.Context, option: click.Parameter, begun: str) -> list[CompletionItem[str]]:
    """What a shell offers for a model: those on disk by name, else folders."""
    from click.shell_completion import CompletionItem

    from llmcli import hub

    with suppress(OSError, LlmcliError):  # a shell that completes shows no errors
        names = [model.name for model in hub.on_disk() if model.name.startswith(begun)]
        return [CompletionItem(begun, type="dir"), *map(CompletionItem, names)]
    return []


MODEL_HELP = "A folder, a name of `llmcli models`, or org/name of the hub"


def several_models(help: str) -> Decorator:
    """``--model`` of a command that takes several, as ``models``."""
    return click.option(
        "--model",
        "-m",
        "models",
        multiple=True,
        type=Line(),
        metavar="MODEL",
        shell_complete=complete_model,
        help=help,
    )


opening_options = (
    click.option(
        "--adapter",
        metavar="ADAPTER",
        shell_complete=complete_model,
        help="A LoRA to merge into it, as PEFT saves it: a folder, or org/name.",
    ),
    offline_option,
    device_option,
    click.option(
        "--dtype",
        type=Choice(DTYPES),
        default="auto",
        show_default=True,
        metavar="DTYPE",
        help="auto (as stored), float32, bfloat16 or float16.",
    ),
    click.option(
        "--quantize",
        "quantization",
        type=Choice(QUANTIZATIONS),
        help="Round the weights as they are read: less to read for each token, for a little quality. CPU only.",
    ),
    threads_option,
)
model_option = click.option(
    "--model",
    "-m",
    metavar="MODEL",
    shell_complete=complete_model,
    help=f"{MODEL_HELP}.  [default: the shipped one]",
)
model_options = bundle("choice", ModelChoice, model_option, *opening_options, title="Model")
pair_options = bundle(
    "choices",
    pair,
    several_models(f"{MODEL_HELP}; twice."),
    *opening_options,
    title="Model",
)
