"""Removing a model from the cache, except for the files that its other revisions need."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from llmcli import hub
from llmcli.errors import LlmcliError
from llmcli.hub import cache
from llmcli.hub.cache import INCOMPLETE, LocalModel
from llmcli.hub.errors import quietly


def removable(name: str) -> LocalModel:
    """The model in the cache with this name or path. Raises LlmcliError if it is not in the cache."""
    folder = hub.local_folder(name)
    if folder is None:
        hub_name = hub.parse_hub_name(name)
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
    before = _stored_bytes(repo)
    found = scan_cache_dir(cache.cache_folder())
    # Only this repo: copies of a model have the same commits, and the first repo found would be deleted.
    found = replace(found, repos=frozenset(other for other in found.repos if other.repo_path == repo))
    with quietly(), suppress(OSError):  # leftovers are reported below
        if found.repos:
            found.delete_revisions(model.folder.name).execute()
        else:
            _remove_from_damaged(repo, model.folder)
        if model.state == INCOMPLETE:
            for path in repo.glob("blobs/*.incomplete"):
                path.unlink()
    if model.folder.exists():
        raise LlmcliError(
            f"{model.folder} could not be deleted", "another program may be using it, or it belongs to another user"
        )
    return before - _stored_bytes(repo)


def _remove_from_damaged(repo: Path, snapshot: Path) -> None:
    """Delete a snapshot and what only it needs from a repo that is too damaged for huggingface_hub to find."""
    refs = [repo / "refs" / revision for revision in cache.revisions(snapshot)]
    shutil.rmtree(snapshot)
    if not any(snapshot.parent.iterdir()):
        shutil.rmtree(repo)
        return
    needed = {path.resolve() for path in snapshot.parent.rglob("*")}
    for ref in refs:
        ref.unlink()
    for blob in repo.glob("blobs/*"):
        if blob.resolve() not in needed and blob.suffix != ".incomplete":
            blob.unlink()


def _stored_bytes(repo: Path) -> int:
    """The size of a repo's files, each counted once: links are not followed."""
    found = (path for part in ("blobs", "snapshots") for path in (repo / part).rglob("*"))
    return sum(path.lstat().st_size for path in found if path.is_file() and not path.is_symlink())
