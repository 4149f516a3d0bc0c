"""The options that choose, place and load a model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from llmcli import engine, generation, hub, render, storage
from llmcli.commands.options.common import (
    Choice,
    Line,
    bundle,
    device_option,
    is_verbose,
    offline_option,
    threads_option,
)
from llmcli.commands.shell.help import Decorator
from llmcli.commands.shell.interrupt import import_torch
from llmcli.errors import LlmcliError, usage_error
from llmcli.files.gguf import read_gguf
from llmcli.files.sizes import readable
from llmcli.hub import name_of

QUANTIZATIONS = ("int8", "int4")
DTYPES = ("auto", "float32", "bfloat16", "float16")
DTYPE_ALIASES = ("fp32", "bf16", "fp16")
PAIR_HINT = "give -m twice, or once with --adapter, --ablate or --steer"
MOST_NAMES = 8  # unused tensors that are named


@dataclass(frozen=True)
class ModelChoice:
    """The values of the model options; ``open`` loads the model."""

    model: str | None = None
    adapter: str | None = None
    offline: bool = False
    device: str = "auto"
    dtype: str = "auto"
    quantization: storage.Quantization | None = None
    threads: int | None = None

    def open(self) -> generation.LoadedModel:
        """Find the model, download it if necessary, and load it, with progress bars on stderr."""
        return self._open()

    def open_restored(self) -> generation.LoadedModel:
        """``open``, but unpack weights that other programs quantized, even where they could stay packed."""
        return self._open(restored=True)

    def _open(self, *, restored: bool = False) -> generation.LoadedModel:
        folders = self.find()
        import_torch()
        from llmcli.model import use_threads

        use_threads(self.threads)
        return self.load(*folders, restored=restored)

    def undivided(self) -> ModelChoice:
        """Return the same choice for a model that runs in one process."""
        return self

    def find(self) -> tuple[Path, Path | None]:
        """Return the folders of the model and of its adapter, if it has one. Downloads what is missing."""
        folder = find_model(self.model, self.offline)
        return folder, find_model(self.adapter, self.offline) if self.adapter is not None else None

    def load(
        self, folder: Path, adapter: Path | None, group: engine.ProcessGroup | None = None, *, restored: bool = False
    ) -> generation.LoadedModel:
        """Load the model or, with a ``group``, this rank's share of it."""
        leads = group is None or group.leads
        with render.LoadingProgress(sys.stderr) as progress:
            loaded = generation.load(
                folder,
                name=" + ".join(render.one_line(name_of(part)) for part in (folder, adapter) if part is not None),
                adapter=adapter,
                device=self.device,
                dtype=self.dtype,
                quantization=self.quantization,
                restored=restored,
                group=group,
                progress=progress if leads else None,
            )
        if leads:
            report_load(loaded)
        return loaded


def report_load(loaded: generation.LoadedModel) -> None:
    """Print what was noticed while the model loaded; with --verbose, also what checking took and what decodes."""
    notes, tokens, rows = loaded.notes, loaded.tokenizer.size, loaded.model.config.vocab_size
    if tokens > rows:
        render.note(
            f"the tokenizer has {tokens} tokens, but the model has only {rows}: does it belong to another model?",
            sys.stderr,
        )
    report_unused(loaded.name, notes.unused)
    if notes.restored:
        formats, dtype = ", ".join(notes.restored), loaded.model.dtype_name
        render.note(
            f"{loaded.name}: weights in {formats} were restored to {dtype}, which takes more memory", sys.stderr
        )
    if notes.text_only:
        render.note(f"{loaded.name} reads images, too; llmcli runs only its text model", sys.stderr)
    if notes.quantizes_activations:
        render.note(
            f"{loaded.name}: config.json asks for quantized activations, too; llmcli does not quantize them",
            sys.stderr,
        )
    if is_verbose() and notes.kept:
        render.note(f"{loaded.name}: weights in {', '.join(notes.kept)} stay packed", sys.stderr)
    if is_verbose():
        size, seconds = readable(notes.checked_bytes), notes.check_seconds
        render.note(f"{loaded.name}: checked {size} of weights for NaN and infinity in {seconds:.2f} s", sys.stderr)
        render.note(f"{loaded.name}: decoded by {engine.engine_of(loaded.model)}", sys.stderr)


def report_unused(name: str, tensors: Sequence[str]) -> None:
    """Print which tensors of its files the model called ``name`` does not use, if there are any."""
    if tensors:
        more = f" and {len(tensors) - MOST_NAMES} more" if len(tensors) > MOST_NAMES else ""
        named = render.one_line(", ".join(tensors[:MOST_NAMES]))
        render.note(f"{name} does not use these tensors of its files: {named}{more}", sys.stderr)


def find_model(name: str | None, offline: bool) -> Path:
    """Return the folder of the model ``name`` (None: the shipped model), with a bar on stderr while it downloads.

    Raises the errors of ``hub.find``, and LlmcliError at once if a GGUF file is damaged: importing torch takes seconds.
    """
    name = hub.default_model() if name is None else name
    with render.DownloadProgress(name, sys.stderr) as progress:
        path = hub.find(name, offline=offline, progress=progress, note=note_once)
    if path.is_file():
        read_gguf(path)
    return path


def note_once(text: str) -> None:
    """Print a note on stderr, unless this command has already printed it: some look for the model more than once."""
    printed = click.get_current_context().ensure_object(dict).setdefault("notes", set())
    if text not in printed:
        printed.add(text)
        render.note(render.one_line(text), sys.stderr)


def describe_model(loaded: generation.LoadedModel) -> render.ModelLabel:
    """Return the model's name, dtype and quantization."""
    return render.ModelLabel(loaded.name, loaded.model.dtype_name, storage.quantization_of(loaded.model))


def choose_compared(models: tuple[str, ...], adapter: str | None, **options: Any) -> tuple[ModelChoice, ...]:
    """Return the models to compare: those that are named, or one without and with ``adapter``.

    ``options`` are the other fields of ``ModelChoice``. Raises LlmcliError for more than two.
    """
    if not models or len(models) > (2 if adapter is None else 1):
        raise usage_error("two models are required", PAIR_HINT)
    chosen = [ModelChoice(model, **options) for model in models]
    return (*chosen, *([] if adapter is None else [replace(chosen[0], adapter=adapter)]))


def pair_of(choices: Sequence[ModelChoice], *, changed: bool) -> tuple[ModelChoice, ModelChoice]:
    """Return the two models to compare; a model that is ``changed`` is compared with itself.

    Raises LlmcliError for any other number of models.
    """
    if len(choices) != (1 if changed else 2):
        needed = "a changed model is compared with itself" if changed else "two models are required"
        raise usage_error(needed, PAIR_HINT)
    return choices[0], choices[-1]


def complete_model(ctx: click.Context, option: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Return the names of models on disk and the GGUF files that begin with ``incomplete``, and folders."""
    with suppress(OSError, LlmcliError):  # completion must not print errors
        names = [*(model.name for model in hub.on_disk()), *hub.gguf_files_beside(incomplete)]
        found = [name for name in names if name.startswith(incomplete) and name.isprintable()]
        return [CompletionItem(incomplete, type="dir"), *map(CompletionItem, found)]
    return []


MODEL_HELP = "A folder, a GGUF file, a name from `llmcli models`, or org/name or org/name:Q4_K_M on the Hub"


def models_option(help: str, *names: str) -> Decorator:
    """Return an option for models that can be repeated, ``--model`` unless it has other ``names``.

    It is passed as ``models``.
    """
    return click.option(
        *(names or ("--model", "-m")),
        "models",
        multiple=True,
        type=Line(),
        metavar="MODEL",
        shell_complete=complete_model,
        help=help,
    )


def dtype_option(auto: str, callback: Callable[[Any, Any, str], str] | None = None) -> Decorator:
    """Return ``--dtype``, whose help explains "auto"; ``callback`` may replace the value."""
    return click.option(
        "--dtype",
        type=Choice(
            (*DTYPES, *DTYPE_ALIASES), case_sensitive=False, elsewhere=[f"--quantize {kind}" for kind in QUANTIZATIONS]
        ),
        default="auto",
        show_default=True,
        metavar="DTYPE",
        callback=callback,
        help=f"auto ({auto}), float32, bfloat16 or float16; or fp32, bf16, fp16.",
    )


def opening_options(dtype: Decorator) -> tuple[Decorator, ...]:
    """Return the options that say how to open a model, with ``dtype`` among them."""
    return (
        click.option(
            "--adapter",
            metavar="ADAPTER",
            shell_complete=complete_model,
            help="Merge in this LoRA adapter (PEFT format): a folder, or org/name.",
        ),
        offline_option,
        device_option,
        dtype,
        click.option(
            "--quantize",
            "quantization",
            type=Choice(QUANTIZATIONS),
            help="Quantize the weights while loading: faster and smaller, at some cost in quality. CPU only.",
        ),
        threads_option,
    )


as_stored = opening_options(dtype_option("as stored"))
# For views: they show numbers, so "auto" is the dtype "precise" of ``model.device``.
in_float32 = opening_options(
    dtype_option(
        "float32 if that fits into half of the memory, otherwise as stored",
        lambda ctx, option, value: "precise" if value == "auto" else value,
    )
)
model_option = click.option(
    "--model",
    "-m",
    metavar="MODEL",
    shell_complete=complete_model,
    help=f"{MODEL_HELP}.  [default: the shipped model]",
)
model_options = bundle("choice", ModelChoice, model_option, *as_stored, title="Model")
view_model_options = bundle("choice", ModelChoice, model_option, *in_float32, title="Model")
pair_options = bundle(
    "choices",
    choose_compared,
    models_option(f"{MODEL_HELP}. Give it twice, or once with --adapter, --ablate or --steer."),
    *in_float32,
    title="Model",
    parameters=("models", "adapter", "offline", "device", "dtype", "quantization", "threads"),
)
