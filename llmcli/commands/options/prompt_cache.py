"""``--prompt-cache``: the file that keeps what reading a prompt computed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmcli.commands.options.writable import check_writable, refused
from llmcli.commands.shell.help import under
from llmcli.commands.shell.interrupt import import_torch

if TYPE_CHECKING:
    from llmcli.generation.loaded import LoadedModel
    from llmcli.generation.prompt_cache import PromptCache
    from llmcli.generation.text import Generation

prompt_cache_option = under(
    "Speed",
    click.option(
        "--prompt-cache",
        type=click.Path(path_type=Path),
        help="Keep what was read in this file; a prompt that begins alike then reads on from there.",
    ),
)


def check_prompt_cache(file: Path) -> None:
    """Errors: a file that cannot be written, or that is something else and would be lost."""
    import_torch()
    from llmcli.storage.cache_file import may_replace

    check_writable("--prompt-cache", file)
    try:
        replaceable = not file.exists() or (file.is_file() and may_replace(file))
    except OSError as error:
        raise refused("--prompt-cache", file, error.strerror or str(error)) from error
    if not replaceable:
        raise refused("--prompt-cache", file, "that is something else, and would be overwritten")


def open_prompt_cache(file: Path, loaded: LoadedModel, ids: Sequence[int], max_new_tokens: int) -> PromptCache:
    """What the file tells of the prompt, and a line about it."""
    from llmcli.generation.prompt_cache import PromptCache
    from llmcli.render.generation import prompt_cache_line
    from llmcli.render.terminal import note

    prompt_cache = PromptCache(file, loaded.model, ids, max_new_tokens)
    note(prompt_cache_line(prompt_cache.reuse, str(file)), sys.stderr)
    return prompt_cache


def cached(generation: Generation) -> int | None:
    """How many of the prompt's tokens need not be read; None without ``--prompt-cache``."""
    return None if generation.prompt_cache is None else generation.prompt_cache.reuse.tokens


def tell_unsaved(generation: Generation) -> None:
    """Say so if the file could not be written."""
    from llmcli.render.terminal import note

    if generation.prompt_cache is not None and generation.prompt_cache.failure:
        kept = generation.prompt_cache
        note(f"prompt cache: {kept.file} was not written: {kept.failure}", sys.stderr)
