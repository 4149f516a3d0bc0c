"""Hugging Face's cache on disk, which llmcli shares with other programs.

It is read without huggingface_hub, whose import takes longer than all of `llmcli tokenize`. A repo is a folder of

    refs/<revision>             a commit's hash
    snapshots/<commit>/<file>   a link to a blob, or the file itself if links are not possible
    blobs/<hash>                the contents; <hash>.incomplete: what has arrived so far
    .no_exist/<commit>/<file>   a file that the commit is known not to contain
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llmcli.errors import LlmcliError
from llmcli.files.formats import other_weights
from llmcli.files.json import read_json
from llmcli.files.names import CONFIG
from llmcli.files.sizes import file_size, folder_size
from llmcli.hub.files import is_complete
from llmcli.hub.names import COMMIT, MAIN, HubName

Progress = Callable[[int, int], None]  # bytes on disk, bytes of the whole model

COMPLETE, INCOMPLETE, OTHER_FORMAT = "complete", "incomplete", "no safetensors"


@dataclass(frozen=True)
class LocalModel:
    """A model on disk. ``last_use`` is the time of its last use or download by llmcli, in seconds as in time.time()."""

    name: str
    folder: Path
    where: str  # "shipped" or "cache"
    state: str = COMPLETE
    last_use: float | None = None

    @property
    def family(self) -> str | None:
        """The ``model_type`` in config.json; None if it cannot be read."""
        try:
            found = read_json(self.folder / CONFIG).get("model_type")
        except LlmcliError:
            return None
        return found if isinstance(found, str) else None

    @property
    def bytes(self) -> int:
        """The size of the model's files, partial downloads included."""
        partial = self.folder.parents[1].glob("blobs/*.incomplete") if self.state == INCOMPLETE else ()
        return folder_size(self.folder) + sum(file_size(path) or 0 for path in partial)


def cache_folder() -> Path:
    """The cache's folder, by the environment variables that huggingface_hub reads, in its order."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")  # noqa: PTH118
    home = _expanded(os.environ.get("HF_HOME", default))
    hub = os.environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))  # noqa: PTH118
    return Path(_expanded(os.environ.get("HF_HUB_CACHE", hub))).resolve()


def _expanded(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111


def repo_folder(repo: str) -> Path:
    """The folder of org/name, which may not exist."""
    return cache_folder() / ("models--" + repo.replace("/", "--"))


def commit_of(name: HubName) -> str | None:
    """Return the commit that a branch or tag had when it was last downloaded, or None if it never was.

    If the revision is itself a commit, return it.
    """
    with suppress(OSError, ValueError):
        commit = (repo_folder(name.repo) / "refs" / name.revision).read_text(encoding="utf-8").strip()
        if COMMIT.fullmatch(commit):
            return commit
    return name.revision if COMMIT.fullmatch(name.revision) else None


def complete_snapshot(name: HubName) -> Path | None:
    """The folder of a model that is complete on disk; None if any part must be downloaded."""
    commit = commit_of(name)
    if commit is None:
        return None
    folder = repo_folder(name.repo) / "snapshots" / commit
    return folder if _is_complete(folder) else None


def _is_complete(folder: Path) -> bool:
    known = folder.parents[1] / ".no_exist" / folder.name / "tokenizer.json"
    return is_complete(folder, without_tokenizer=known.is_file())


def mark_used(folder: Path) -> None:
    """Set the modification time of a cached model's folder to now: most systems keep no access times."""
    if _repo_of(folder):
        with suppress(OSError):  # a shared cache may be read-only
            os.utime(folder)


def name_of(folder: Path) -> str:
    """The name of the model in ``folder``: org/name[@revision] in the cache, otherwise the folder's name."""
    repo = _repo_of(folder)
    if repo is None:
        return folder.name
    refs = revisions(folder)
    return str(HubName(repo, MAIN if MAIN in refs else (refs or [folder.name])[0]))


def revisions(folder: Path) -> list[str]:
    """The branches and tags that point to the commit of a snapshot."""
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


def models() -> Iterator[LocalModel]:
    """The models in the cache, incomplete ones included; anything else in it is skipped."""
    for folder in sorted(cache_folder().glob("models--*/snapshots/*")):
        if not folder.is_dir():
            continue
        names = {path.name for path in folder.iterdir()}
        partial = any(folder.parents[1].glob("blobs/*.incomplete"))
        if _is_complete(folder):
            state = COMPLETE
        elif CONFIG in names and other_weights(names) and not any(n.endswith(".safetensors") for n in names):
            state = OTHER_FORMAT
        elif CONFIG in names or partial:
            state = INCOMPLETE
        else:
            continue
        yield LocalModel(name_of(folder), folder, "cache", state, folder.stat().st_mtime)
