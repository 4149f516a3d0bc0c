"""Hugging Face's cache on disk, which llmcli shares with other programs.

It is read without huggingface_hub, whose import takes longer than all of `llmcli tokenize`. A repo is a folder of

    refs/<revision>             a commit's hash
    snapshots/<commit>/<file>   a link to a blob, or the file itself if links are not possible
    blobs/<hash>                the contents; <hash>.incomplete: what has arrived so far
    .no_exist/<commit>/<file>   a file that the commit is known not to contain
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.files.formats import other_weights
from llmcli.files.gguf import first_name, part_names
from llmcli.files.gguf_summary import architecture_in, file_type_in
from llmcli.files.json import read_json
from llmcli.files.names import CONFIG, WEIGHTS
from llmcli.files.sizes import file_size
from llmcli.hub.files import is_complete
from llmcli.hub.gguf_names import choose, label_of, models_among, name_among
from llmcli.hub.names import COMMIT, MAIN, HubName

Progress = Callable[[int, int], None]  # bytes on disk, bytes of the whole model

COMPLETE, INCOMPLETE, OTHER_FORMAT = "complete", "incomplete", "no safetensors"


@dataclass(frozen=True)
class LocalModel:
    """A model on disk: a ``folder`` or, of a GGUF model, its first file.

    ``where`` is "shipped", "cache" or the program whose folder it is in. ``last_use`` is the time of its last use or
    download by llmcli, in seconds as in time.time(). ``label`` is a GGUF model's quantization, if the file need not be
    read to know it.
    """

    name: str
    folder: Path
    where: str
    state: str = COMPLETE
    last_use: float | None = None
    label: str = ""

    @property
    def is_gguf(self) -> bool:
        """Whether the model is a GGUF file."""
        return self.folder.is_file()

    @property
    def family(self) -> str | None:
        """The ``model_type`` in config.json, or a GGUF file's architecture; None if it cannot be read."""
        if self.is_gguf:
            return architecture_in(self.folder)
        found = self._config.get("model_type")
        return found if isinstance(found, str) else None

    @property
    def format(self) -> str:
        """How the model is stored: "safetensors" or "GGUF" with its quantization, or "" if its weights are missing."""
        if self.is_gguf:
            return f"GGUF {self.label or file_type_in(self.folder)}".strip()
        if not any(self.folder.glob("*.safetensors")):
            return ""
        settings = self._config.get("quantization_config")
        method = settings.get("quant_method") if isinstance(settings, Mapping) else None
        return f"safetensors {method}" if isinstance(method, str) else "safetensors"

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        """The parsed config.json; empty if it cannot be read."""
        try:
            return read_json(self.folder / CONFIG)
        except LlmcliError:
            return {}

    @property
    def files(self) -> list[Path]:
        """The model's files, partial downloads included. GGUF files in its folder are models of their own."""
        if self.is_gguf:
            names = part_names(first_name(self.folder.name))
            return [path for name in names if (path := self.folder.with_name(name)).is_file()]
        files = [path for path in self.folder.rglob("*") if path.is_file() and path.suffix.lower() != ".gguf"]
        return [*files, *_partials(self.folder)] if self.state == INCOMPLETE else files

    @property
    def bytes(self) -> int:
        """The size of the model's files, partial downloads included."""
        return sum(file_size(path) or 0 for path in self.files)


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


def complete_model(name: HubName, *, any_gguf: bool = False) -> Path | None:
    """The folder or the first GGUF file of a model that is complete on disk; None if any part must be downloaded.

    Without a tag, a GGUF file is the model if the repo is known to contain no safetensors, or if ``any_gguf``.
    """
    commit = commit_of(name)
    folder = repo_folder(name.repo) / "snapshots" / (commit or "")
    if commit is None or not folder.is_dir():
        return None
    if name.gguf is None and _is_complete(folder):
        return folder
    if name.gguf is None and not any_gguf and not _is_absent(WEIGHTS, folder):
        return None
    files = gguf_files(folder)
    with suppress(LlmcliError):  # no such file
        first = choose(files, name.gguf)
        if all(part in files for part in part_names(first)):
            return folder / first
    return None


def gguf_files(folder: Path) -> list[str]:
    """The names of the GGUF files in a snapshot."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() == ".gguf" and path.is_file()
    )


def _is_complete(folder: Path) -> bool:
    return is_complete(folder, without_tokenizer=_is_absent("tokenizer.json", folder))


def _is_absent(file: str, folder: Path) -> bool:
    """Whether a snapshot's commit is known to contain no such file."""
    return (folder.parents[1] / ".no_exist" / folder.name / file).is_file()


def _partials(folder: Path) -> Iterator[Path]:
    """What has arrived of files of a snapshot's repo."""
    return folder.parents[1].glob("blobs/*.incomplete")


def mark_used(path: Path) -> None:
    """Set the modification time of a cached model to now: most systems keep no access times."""
    if snapshot_of(path):
        with suppress(OSError):  # a shared cache may be read-only
            os.utime(path, follow_symlinks=os.utime not in os.supports_follow_symlinks)


def name_of(path: Path) -> str:
    """The name of the model in a folder or a GGUF file: as on the hub if it is in the cache, otherwise the path's."""
    folder = snapshot_of(path)
    if folder is None:
        return path.name
    refs, gguf = revisions(folder), None
    if path != folder:
        gguf = name_among(path.relative_to(folder).as_posix(), gguf_files(folder))
    return str(HubName(_repo_of(folder), MAIN if MAIN in refs else (refs or [folder.name])[0], gguf))


def revisions(folder: Path) -> list[str]:
    """The branches and tags that point to the commit of a snapshot."""
    refs = folder.parents[1] / "refs"
    found = [path.relative_to(refs).as_posix() for path in sorted(refs.rglob("*")) if path.is_file()]
    repo = _repo_of(folder)
    return [revision for revision in found if commit_of(HubName(repo, revision)) == folder.name]


def snapshot_of(path: Path) -> Path | None:
    """The snapshot in the cache that ``path`` is, or is a GGUF file of; None for any other path."""
    for folder in (path, *path.parents):
        if folder.parent.name == "snapshots" and len(folder.parents) > 2:
            repo = folder.parents[1]
            inside = repo.name.startswith("models--") and repo.parent == cache_folder()
            return folder if inside and (folder == path or path.suffix.lower() == ".gguf") else None
    return None


def _repo_of(folder: Path) -> str:
    """org/name of a snapshot."""
    return "/".join(folder.parents[1].name.split("--")[1:])


def models() -> Iterator[LocalModel]:
    """The models in the cache, incomplete ones included; anything else in it is skipped."""
    for folder in sorted(cache_folder().glob("models--*/snapshots/*")):
        if not folder.is_dir():
            continue
        files = gguf_files(folder)
        for first, parts in models_among(files).items():
            path, state = folder / parts[0], COMPLETE if parts == part_names(first) else INCOMPLETE
            yield LocalModel(name_of(path), path, "cache", state, path.lstat().st_mtime, label_of(first))
        state = _state_of(folder, has_gguf=bool(files))
        if state:
            yield LocalModel(name_of(folder), folder, "cache", state, folder.stat().st_mtime)


def _state_of(folder: Path, *, has_gguf: bool) -> str:
    """The state of the model that a snapshot's folder is, besides its GGUF files; "" if it is none."""
    names = {path.name for path in folder.iterdir() if path.suffix.lower() != ".gguf"}
    if _is_complete(folder):
        return COMPLETE
    if CONFIG in names and other_weights(names) and not any(name.endswith(".safetensors") for name in names):
        return OTHER_FORMAT
    partial = any(_partials(folder))
    return INCOMPLETE if partial or (CONFIG in names and not has_gguf) else ""
