"""Hugging Face's cache on disk, which llmcli shares with every other program that uses it.

Read here without huggingface_hub, whose import takes longer than all that `tokenize` does. A repo is a folder of

    refs/<revision>             a commit's hash
    snapshots/<commit>/<file>   a link to a blob, or the file itself where there are no links
    blobs/<hash>                the contents; <hash>.incomplete: those that came so far
    .no_exist/<commit>/<file>   a file that the commit is known not to have
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llmcli.files.names import CONFIG
from llmcli.hub.files import is_complete, pickled_files
from llmcli.hub.names import COMMIT, MAIN, HubName

Progress = Callable[[int, int], None]  # bytes that are there, bytes of the whole model

COMPLETE, INCOMPLETE, PICKLED = "complete", "incomplete", "no safetensors"


@dataclass(frozen=True)
class OnDisk:
    """A model on disk. ``last_use`` is a time as of time.time(): when llmcli last opened or fetched it."""

    name: str
    folder: Path
    where: str  # "shipped" or "cache"
    state: str = COMPLETE
    last_use: float | None = None

    @property
    def family(self) -> str | None:
        """``model_type`` of config.json, if that can be read."""
        try:
            found = json.loads((self.folder / CONFIG).read_text(encoding="utf-8"))["model_type"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return found if isinstance(found, str) else None

    @property
    def bytes(self) -> int:
        """The size of its files, and of what came of one that is still incomplete."""
        partial = self.folder.parents[1].glob("blobs/*.incomplete") if self.state == INCOMPLETE else ()
        return size_of(self.folder) + sum(_size(path) for path in partial)


def cache_folder() -> Path:
    """Where the cache lies, by the variables that huggingface_hub reads and in its order."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")  # noqa: PTH118
    home = _expanded(os.environ.get("HF_HOME", default))
    hub = os.environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))  # noqa: PTH118
    return Path(_expanded(os.environ.get("HF_HUB_CACHE", hub))).resolve()


def _expanded(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111


def repo_folder(repo: str) -> Path:
    """The folder of org/name, whether it is there or not."""
    return cache_folder() / ("models--" + repo.replace("/", "--"))


def commit_of(name: HubName) -> str | None:
    """The commit that a revision stood for when it was last fetched; a commit stands for itself."""
    with suppress(OSError, ValueError):
        commit = (repo_folder(name.repo) / "refs" / name.revision).read_text(encoding="utf-8").strip()
        if COMMIT.fullmatch(commit):
            return commit
    return name.revision if COMMIT.fullmatch(name.revision) else None


def complete_snapshot(name: HubName) -> Path | None:
    """The folder of a model that is all there; None if a part of it must be downloaded."""
    commit = commit_of(name)
    if commit is None:
        return None
    folder = repo_folder(name.repo) / "snapshots" / commit
    return folder if _is_complete(folder) else None


def _is_complete(folder: Path) -> bool:
    known = folder.parents[1] / ".no_exist" / folder.name / "tokenizer.json"
    return is_complete(folder, without_tokenizer=known.is_file())


def mark_used(folder: Path) -> None:
    """Set the time of a cached model's folder to now. Access times would not do: most systems keep none."""
    if _repo_of(folder):
        with suppress(OSError):  # a cache that others share may be read-only
            os.utime(folder)


def name_of(folder: Path) -> str:
    """What to call the model in ``folder``: org/name[@revision] for one of the cache, else the folder's name."""
    repo = _repo_of(folder)
    if repo is None:
        return folder.name
    refs = revisions(folder)
    return str(HubName(repo, MAIN if MAIN in refs else (refs or [folder.name])[0]))


def revisions(folder: Path) -> list[str]:
    """The branches and tags that stand for the commit of a snapshot."""
    refs = folder.parents[1] / "refs"
    found = [path.relative_to(refs).as_posix() for path in sorted(refs.rglob("*")) if path.is_file()]
    repo = _repo_of(folder) or ""
    return [revision for revision in found if commit_of(HubName(repo, revision)) == folder.name]


def _repo_of(folder: Path) -> str | None:
    """org/name of a snapshot in the cache; None for any other folder."""
    kind, *parts = folder.parents[1].name.split("--") if len(folder.parents) > 2 else [""]
    if kind != "models" or not parts or folder.parent.name != "snapshots":
        return None
    return "/".join(parts) if folder.parents[2] == cache_folder() else None


def models() -> Iterator[OnDisk]:
    """The models of the cache, those that are not all there too; other things that lie in it are left out."""
    for folder in sorted(cache_folder().glob("models--*/snapshots/*")):
        if not folder.is_dir():
            continue
        names = {path.name for path in folder.iterdir()}
        partial = any(folder.parents[1].glob("blobs/*.incomplete"))
        if _is_complete(folder):
            state = COMPLETE
        elif CONFIG in names and pickled_files(names) and not any(n.endswith(".safetensors") for n in names):
            state = PICKLED
        elif CONFIG in names or partial:
            state = INCOMPLETE
        else:
            continue
        yield OnDisk(name_of(folder), folder, "cache", state, folder.stat().st_mtime)


def size_of(folder: Path) -> int:
    """The bytes of all its files."""
    return sum(_size(path) for path in folder.rglob("*"))


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size if path.is_file() else 0
    return 0
