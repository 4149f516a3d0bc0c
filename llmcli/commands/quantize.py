"""``llmcli quantize``: write a model with 8- or 4-bit weights."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from llmcli import render, storage
from llmcli import train as training
from llmcli.commands.options.common import Choice, offline_option, threads_option, verbose_option
from llmcli.commands.options.model import QUANTIZATIONS, ModelChoice, complete_model, find_model
from llmcli.commands.shell.command import Command
from llmcli.commands.shell.interrupt import import_torch
from llmcli.errors import usage_error
from llmcli.files.atomic import clear_leftovers, replacing_folder
from llmcli.files.json import read_json
from llmcli.files.names import CONFIG, WEIGHTS
from llmcli.files.sizes import readable


@click.command(cls=Command)
@click.argument("model", shell_complete=complete_model)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--to", "kind", type=Choice(QUANTIZATIONS), default="int8", show_default=True, help="Format of the weights."
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Measure the loss in quality on this text or JSON Lines file. Repeatable.",
)
@offline_option
@threads_option
@verbose_option
def quantize(
    model: str,
    out: Path,
    kind: Any,
    texts: tuple[Path, ...],
    offline: bool,
    threads: int | None,
) -> None:
    """Quantize the weights of MODEL to 8 or 4 bits, and write the new model to the folder OUT.

    The new model runs on the CPU only. There, reading the weights takes most of the time of a large model, so it
    becomes faster; a very small model may not. Each 32 weights share a scale.
    Embedding tables always have 8 bits; norms and biases are not quantized. The option --quantize of other commands
    does the same each time they load a model.

    \b
    Examples:
      llmcli quantize llama-tales-12m tales-int8
      llmcli quantize llama-tales-12m tales-int4 --to int4 --text stories.txt
      llmcli generate -m tales-int4 "Once upon a time"
    """
    check_folder(out)
    import_torch()
    import torch

    documents = [example.text for example in training.read_examples(texts)] if texts else []
    if find_model(model, offline).is_file():
        raise usage_error(f"{model} is a GGUF file", "quantize the model that it was made from")
    loaded = ModelChoice(model, offline=offline, device="cpu", threads=threads).open_restored()
    encoded = [training.Encoded(loaded.prompt_ids(document)) for document in documents]
    size = sum(len(document.encode()) for document in documents)
    # Measured first, because a text may be too short.
    old = training.validate(loaded.model, encoded, size, precision=torch.float32) if documents else None
    with replacing_folder(out, last=CONFIG) as folder:
        with render.LoadingProgress(sys.stderr) as progress:
            storage.save_quantized(loaded.model, kind, folder, read_json(loaded.folder / CONFIG), progress)
        storage.copy_rest(loaded.folder, folder)
    before = sum(path.stat().st_size for path in storage.weight_files(loaded.folder))
    after = (out / WEIGHTS).stat().st_size
    render.note(f"{loaded.name}: {readable(before)} before, {readable(after)} as {kind}", sys.stderr)
    if old is not None:
        rounded = ModelChoice(str(out), device="cpu", threads=threads).open()
        new = training.validate(rounded.model, encoded, size, precision=torch.float32)
        render.note(
            f"{old.bits_per_byte:.4f} bits per byte before, {new.bits_per_byte:.4f} after: "
            f"perplexity {new.more_perplexity(old):+.2%}",
            sys.stderr,
        )
    render.print_path(out, sys.stdout)


def check_folder(folder: Path) -> None:
    """Raise LlmcliError if a folder is neither new nor empty, or if it cannot be created or written."""
    try:
        clear_leftovers(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise usage_error(f"{folder} exists and is not an empty folder", "name another folder")
        above = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    except OSError as error:
        raise usage_error(f"cannot create {folder}: {error.strerror or error}", "name another folder") from error
    if not above.is_dir():
        raise usage_error(f"cannot create {folder}: {above} is not a folder", "name another folder")
    if not os.access(above, os.W_OK):
        raise usage_error(f"cannot write to {above}", "name another folder")
