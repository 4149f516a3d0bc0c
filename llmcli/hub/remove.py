"""Takes a model out of the cache, and leaves alone what other revisions of it need."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from llmcli import hub
from llmcli.errors import LlmcliError
from llmcli.hub import cache
from llmcli.hub.cache import INCOMPLETE, OnDisk, size_of
from llmcli.hub.failures import quietly


def removable(name: str) -> OnDisk:
    """The model of the cache that is called ``name`` or lies at that path. Errors: it is no model of the cache."""
    folder = hub.local_folder(name)
    if folder is None:
        hub_name = hub.of_the_hub(name)
        folder = cache.repo_folder(hub_name.repo) / "snapshots" / (cache.commit_of(hub_name) or "")
    elif name in hub.shipped():
        raise LlmcliError(f"{name} came with llmcli and stays", "only models that were downloaded can be removed")
    elif not folder.is_relative_to(cache.cache_folder()):
        raise LlmcliError(f"{folder} is a folder of your own", "delete it yourself if it is no longer needed")
    for model in cache.models():
        if model.folder == folder:
            return model
    raise LlmcliError(f"{name} is not on disk", "`llmcli models` lists what is")


def remove(model: OnDisk) -> int:
    """Delete a model of the cache; how many bytes that freed. Errors: a file of it cannot be deleted."""
    from huggingface_hub import scan_cache_dir

    repo = model.folder.parents[1]
    partial = _partial_bytes(repo)
    found = scan_cache_dir(cache.cache_folder())
    # Of this repo alone: a copy of a model on the hub has the same commits, and the first one found would go.
    found = replace(found, repos=frozenset(other for other in found.repos if other.repo_path == repo))
    freed = size_of(model.folder)
    if found.repos:
        strategy = found.delete_revisions(model.folder.name)
        freed = strategy.expected_freed_size
        with quietly(), suppress(OSError):  # what is left is said below
            strategy.execute()
    else:  # so broken that huggingface_hub does not know it
        shutil.rmtree(model.folder, ignore_errors=True)
    if model.state == INCOMPLETE:
        for path in repo.glob("blobs/*.incomplete"):
            with suppress(OSError):
                path.unlink()
    if model.folder.exists():
        raise LlmcliError(f"{model.folder} could not be deleted", "a program may be using it, or it is not yours")
    return freed + partial - _partial_bytes(repo)


def _partial_bytes(repo: Path) -> int:
    return sum(path.stat().st_size for path in repo.glob("blobs/*.incomplete"))
