"""Removing a model from the cache, except for the files that its other revisions need."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from llmcli import hub
from llmcli.errors import LlmcliError
from llmcli.hub import cache
from llmcli.hub.cache import INCOMPLETE, LocalModel, size_of
from llmcli.hub.errors import quietly


def removable(name: str) -> LocalModel:
    """The model in the cache with this name or path. Raises LlmcliError if it is not in the cache."""
    folder = hub.local_folder(name)
    if folder is None:
        hub_name = hub.of_the_hub(name)
        folder = cache.repo_folder(hub_name.repo) / "snapshots" / (cache.commit_of(hub_name) or "")
    elif name in hub.shipped():
        raise LlmcliError(f"{name} ships with llmcli and cannot be removed", "only downloaded models can be removed")
    elif not folder.is_relative_to(cache.cache_folder()):
        raise LlmcliError(f"{folder} is not in the cache", "delete the folder yourself if you no longer need it")
    for model in cache.models():
        if model.folder == folder:
            return model
    raise LlmcliError(f"{name} is not on disk", "`llmcli models` lists the models that are")


def remove(model: LocalModel) -> int:
    """Delete a model from the cache. Returns the bytes freed. Raises LlmcliError if a file cannot be deleted."""
    from huggingface_hub import scan_cache_dir

    repo = model.folder.parents[1]
    partial = _partial_bytes(repo)
    found = scan_cache_dir(cache.cache_folder())
    # Only this repo: copies of a model have the same commits, and the first repo found would be deleted.
    found = replace(found, repos=frozenset(other for other in found.repos if other.repo_path == repo))
    freed = size_of(model.folder)
    if found.repos:
        strategy = found.delete_revisions(model.folder.name)
        freed = strategy.expected_freed_size
        with quietly(), suppress(OSError):  # leftovers are reported below
            strategy.execute()
    else:  # too damaged for huggingface_hub to find
        shutil.rmtree(model.folder, ignore_errors=True)
    if model.state == INCOMPLETE:
        for path in repo.glob("blobs/*.incomplete"):
            with suppress(OSError):
                path.unlink()
    if model.folder.exists():
        raise LlmcliError(
            f"{model.folder} could not be deleted", "another program may be using it, or it belongs to another user"
        )
    return freed + partial - _partial_bytes(repo)


def _partial_bytes(repo: Path) -> int:
    return sum(path.stat().st_size for path in repo.glob("blobs/*.incomplete"))
