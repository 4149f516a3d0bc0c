"""``llmcli export``: write a model as a GGUF file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from llmcli import generation, render, storage
from llmcli.commands.options.common import Choice, offline_option, threads_option, verbose_option
from llmcli.commands.options.model import complete_model, find_model, report_unused
from llmcli.commands.options.writable import check_writable
from llmcli.commands.shell.command import Command
from llmcli.commands.shell.interrupt import import_torch
from llmcli.errors import usage_error
from llmcli.files.atomic import clear_leftovers, replacing
from llmcli.files.sizes import readable
from llmcli.hub.cache import name_of

TYPES = ("BF16", "F16", "F32", "Q8_0", "Q4_0", "Q4_K")


@click.command(cls=Command)
@click.argument("model", shell_complete=complete_model)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--type",
    "kind",
    type=Choice(TYPES, case_sensitive=False),
    default="BF16",
    show_default=True,
    metavar="TYPE",
    help=f"Format of the matrices: {', '.join(TYPES[:-1])} or {TYPES[-1]}.",
)
@click.option(
    "--adapter",
    metavar="ADAPTER",
    shell_complete=complete_model,
    help="Merge in this LoRA adapter (PEFT format): a folder, or org/name.",
)
@offline_option
@threads_option
@verbose_option
def export(model: str, out: Path, kind: Any, adapter: str | None, offline: bool, threads: int | None) -> None:
    """Write MODEL as the GGUF file OUT, for llama.cpp, ollama and other programs.

    The file contains the tokenizer and the chat template. BF16 and F16 keep 16 bits of each weight, Q8_0 keeps 8, Q4_0
    and Q4_K about 4.5. Q4_K is closer to the original than Q4_0, because the weights that matter most have 6 bits.
    With 4 bits, embedding tables and the head have 8; norms and biases are always in float32.

    \b
    Examples:
      llmcli export llama-tales-12m tales.gguf
      llmcli export HuggingFaceTB/SmolLM2-135M-Instruct smollm2.gguf --type Q8_0
      llmcli export my-model my-model.gguf --adapter my-lora --type Q4_K
      llmcli generate -m tales.gguf "Once upon a time"
    """
    check_writable("OUT", out)
    clear_leftovers(out)
    if out.exists():
        raise usage_error(f"{out} exists", "name another file, or remove it")
    import_torch()
    from llmcli.model import use_threads

    use_threads(threads)
    folder = find_model(model, offline)
    merged = None if adapter is None else find_model(adapter, offline)
    name = " + ".join(render.one_line(name_of(part)) for part in (folder, merged) if part is not None)
    checkpoint = generation.read_checkpoint(folder)
    planned = storage.GgufExport(checkpoint, kind, merged)
    described = generation.gguf_metadata(checkpoint, planned.vocab_size, name)
    with replacing(out, new=True) as file, render.WritingProgress(sys.stderr) as progress:
        planned.write(file, described.metadata, progress)
    report_unused(name, planned.unused)
    for line in (*planned.changes, *described.changes):
        render.note(f"{name}: {line}", sys.stderr)
    render.note(f"{name}: {readable(out.stat().st_size)} as {kind}", sys.stderr)
    render.print_path(out, sys.stdout)
