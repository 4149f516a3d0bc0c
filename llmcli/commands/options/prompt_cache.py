"""``--prompt-cache``: a file with the KV cache of a prompt."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from llmcli import generation, render, storage
from llmcli.commands.options.writable import check_writable, unwritable
from llmcli.commands.shell.help import under
from llmcli.commands.shell.interrupt import import_torch
from llmcli.files.atomic import clear_leftovers

prompt_cache_option = under(
    "Speed",
    click.option(
        "--prompt-cache",
        type=click.Path(path_type=Path),
        help="Save the KV cache of the prompt in this file; a prompt with the same beginning then reuses it.",
    ),
)


def check_prompt_cache(file: Path) -> None:
    """Raise LlmcliError if the file cannot be written, or is something else that would be overwritten."""
    import_torch()
    check_writable("--prompt-cache", file)
    clear_leftovers(file)
    try:
        replaceable = not file.exists() or (file.is_file() and storage.may_replace(file))
    except OSError as error:
        raise unwritable("--prompt-cache", file, error.strerror or str(error)) from error
    if not replaceable:
        raise unwritable("--prompt-cache", file, "it is not a prompt cache and would be overwritten")


def open_prompt_cache(
    file: Path, loaded: generation.LoadedModel, ids: Sequence[int], max_new_tokens: int
) -> generation.PromptCache:
    """Read the part of the prompt that the file holds, and print a note about it."""
    prompt_cache = generation.PromptCache(file, loaded.model, ids, max_new_tokens)
    render.note(render.prompt_cache_line(prompt_cache.reuse, str(file)), sys.stderr)
    return prompt_cache


def cached_tokens(generated: generation.Generation) -> int | None:
    """How many tokens of the prompt came from the cache; None without ``--prompt-cache``."""
    return None if generated.prompt_cache is None else generated.prompt_cache.reuse.tokens


def check_saved(generated: generation.Generation) -> None:
    """Raise LlmcliError if the file could not be written."""
    cache = generated.prompt_cache
    if cache is not None and cache.failure is not None:
        raise cache.failure
