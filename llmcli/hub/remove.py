"""Removing a model from the cache, except for the files that other models and revisions need."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from llmcli import hub
from llmcli.errors import LlmcliError
from llmcli.hub import cache, programs
from llmcli.hub.cache import INCOMPLETE, LocalModel
from llmcli.hub.errors import quietly
from llmcli.hub.gguf_names import choose, listed
from llmcli.hub.local import local_model, shipped
from llmcli.hub.names import HubName


def removable(name: str) -> LocalModel:
    """The model in the cache with this name or path. Raises LlmcliError if it is not in the cache."""
    path = local_model(name) or programs.find(name)
    if path is None:
        return _in_cache(hub.parse_hub_name(name))
    if name in shipped():
        raise LlmcliError(f"{name} ships with llmcli and cannot be removed", "only downloaded models can be removed")
    program = programs.keeper_of(path)
    if program is not None:
        raise LlmcliError(f"{name} belongs to {program.where}: llmcli removes only what it downloads", program.removal)
    if not path.is_relative_to(cache.cache_folder()):
        what = "the file" if path.is_file() else "the folder"
        raise LlmcliError(f"{path} is not in the cache", f"delete {what} yourself if you no longer need it")
    for model in cache.models():
        if model.folder == path:
            return model
    raise _not_on_disk(name)


def _in_cache(name: HubName) -> LocalModel:
    """The model in the cache with a name of the hub. Without a tag, a repo's only GGUF file has the repo's name."""
    folder = cache.repo_folder(name.repo) / "snapshots" / (cache.commit_of(name) or "")
    found = {model.folder: model for model in cache.models() if cache.snapshot_of(model.folder) == folder}
    if name.gguf is None and folder in found:
        return found[folder]
    files = {path.relative_to(folder).as_posix(): model for path, model in found.items() if path != folder}
    if not files:
        raise _not_on_disk(str(name))
    if name.gguf is None and len(files) > 1:
        raise LlmcliError(f"{name} has {len(files)} GGUF files on disk: {listed(files)}", "name one after a colon")
    with suppress(LlmcliError):
        first = choose(files, name.gguf)
        if first in files:
            return files[first]
    raise _not_on_disk(str(name))


def _not_on_disk(name: str) -> LlmcliError:
    return LlmcliError(f"{name} is not on disk", "`llmcli models` lists the models that are")


def remove(model: LocalModel) -> int:
    """Delete a model from the cache. Returns the bytes freed. Raises LlmcliError if a file cannot be deleted."""
    snapshot = cache.snapshot_of(model.folder)
    assert snapshot is not None
    repo = snapshot.parents[1]
    before = _stored_bytes(repo)
    others = [other for other in cache.models() if cache.snapshot_of(other.folder) == snapshot and other != model]
    gone = model.files if others else [snapshot]
    with quietly(), suppress(OSError):  # leftovers are reported below
        if others:
            _remove_files(gone, repo)
        else:
            _remove_snapshot(repo, snapshot)
            if model.state == INCOMPLETE:
                for path in repo.glob("blobs/*.incomplete"):
                    path.unlink()
    left = [path for path in gone if path.exists()]
    if left:
        raise LlmcliError(
            f"{left[0]} could not be deleted", "another program may be using it, or it belongs to another user"
        )
    return before - _stored_bytes(repo)


def _remove_files(files: list[Path], repo: Path) -> None:
    """Delete some of a snapshot's files, and their contents unless another file has the same."""
    blobs = {path.resolve() for path in files}
    for path in files:
        path.unlink(missing_ok=True)
    needed = {path.resolve() for path in (repo / "snapshots").rglob("*")}
    for blob in blobs - needed:
        blob.unlink(missing_ok=True)


def _remove_snapshot(repo: Path, snapshot: Path) -> None:
    """Delete a snapshot and what only it needs."""
    from huggingface_hub import scan_cache_dir

    found = scan_cache_dir(cache.cache_folder())
    # Only this repo: copies of a model have the same commits, and the first repo found would be deleted.
    found = replace(found, repos=frozenset(other for other in found.repos if other.repo_path == repo))
    if found.repos:
        found.delete_revisions(snapshot.name).execute()
    else:
        _remove_from_damaged(repo, snapshot)


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
