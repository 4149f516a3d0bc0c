"""Downloads from the Hugging Face Hub into its cache.

huggingface_hub makes the connections and authenticates. The contents are received here, because huggingface_hub keeps
nothing of an interrupted download and checks only the sizes of files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from llmcli.errors import LlmcliError
from llmcli.files.atomic import replacing
from llmcli.files.gguf import part_names
from llmcli.files.json import read_json
from llmcli.files.names import ADAPTER_WEIGHTS, CONFIG, INDEX, WEIGHTS, weights_among
from llmcli.files.sizes import file_size, free_space, readable
from llmcli.hub.cache import Progress, cache_folder, commit_of, repo_folder
from llmcli.hub.errors import RESUMES, host, is_connection_error, quietly, translate_errors
from llmcli.hub.files import shards, small_files, weight_files
from llmcli.hub.gguf_names import choose, models_among
from llmcli.hub.names import HubName, endpoint
from llmcli.hub.notes import Note, ignore, note_choice
from llmcli.hub.responses import Listing, RemoteFile, list_files, responding
from llmcli.model.families import family_of
from llmcli.model.families.gguf import check_architecture
from llmcli.storage.foreign_formats import check_format

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK = 1 << 20
RETRY_BYTES = 1 << 20  # progress after which a broken connection is resumed automatically


def download_model(name: HubName, progress: Progress | None = None, note: Note = ignore) -> Path:
    """Download the model's current version from the hub, except for files that are on disk.

    Returns its folder or its first GGUF file. ``progress`` is called if anything must be downloaded, ``note`` if one of
    several GGUF files was chosen. An interrupted download is resumed by the next call. Raises LlmcliError for errors of
    the hub, the network or the disk, a model that llmcli cannot read, or a damaged file.
    """
    with translate_errors(name), quietly():
        listing = list_files(name)
        files, download = listing.files, Download(name.repo, listing.commit)
        try:
            if name.gguf is not None or _only_gguf(files):
                return _download_gguf(name, listing, download, progress, note)
            weights = _weights(files, download)
        except LlmcliError as error:
            raise LlmcliError(f"{name} cannot be used: {error.message}", error.hint) from None
        small = [files[file] for file in small_files(files)]
        download.receive_all([*small, *weights], name, progress)  # weights last: a model that has them is complete
        if "tokenizer.json" not in files:
            download.note_absent("tokenizer.json")
        return download.folder


def _only_gguf(names: Collection[str]) -> bool:
    """Whether a repo has GGUF models, and neither another model nor an adapter in safetensors."""
    return bool(models_among(names)) and weights_among(names) is None and ADAPTER_WEIGHTS not in names


def _download_gguf(name: HubName, listing: Listing, download: Download, progress: Progress | None, note: Note) -> Path:
    """Download the GGUF file that ``name`` chooses, or all its parts. Returns the first one."""
    first = choose(listing.files, name.gguf)
    parts = part_names(first)
    missing = [part for part in parts if part not in listing.files]
    if missing:
        raise LlmcliError(f"it has no {missing[0]}, which is a part of the model", "choose another of its GGUF files")
    if listing.architecture is not None:
        check_architecture(listing.architecture)
    if name.gguf is None:
        note_choice(name, first, listing.files, note)
    download.receive_all([listing.files[part] for part in parts], name, progress)
    if _only_gguf(listing.files):
        download.note_absent(WEIGHTS)
    return download.folder / first


def _weights(listing: Mapping[str, RemoteFile], download: Download) -> list[RemoteFile]:
    """The weight files and their index. Raises LlmcliError if llmcli cannot use them, judging by config and index."""
    weights = [listing[file] for file in weight_files(listing)]
    if CONFIG in listing:
        file = download.fetch_file(listing[CONFIG])
        try:
            config = read_json(file)
        except LlmcliError:
            raise LlmcliError("config.json is not a JSON object", "the model's files may be damaged") from None
        family_of(config)
        check_format(config)
    if listing.get(INDEX) in weights:
        listed = shards(download.fetch_file(listing[INDEX]))
        missing = [shard for shard in listed if shard not in listing]
        if missing:
            raise LlmcliError(f"{INDEX} lists {missing[0]}, which does not exist", "the model's files may be damaged")
        weights += [listing[shard] for shard in listed]
    return weights


class Download:
    """The download of one commit of a repo into the cache."""

    def __init__(self, repo: str, commit: str) -> None:
        self._repo = repo
        self._commit = commit
        self._cached = repo_folder(repo)
        self.folder = self._cached / "snapshots" / commit

    def set_ref(self, revision: str) -> None:
        """Record that the revision refers to this commit."""
        if revision != self._commit:
            path = self._cached / "refs" / revision
            path.parent.mkdir(parents=True, exist_ok=True)
            # huggingface_hub reads every file in refs/: a temporary one that is left there would damage the cache.
            with replacing(path, beside=self._cached) as file:
                file.write(self._commit.encode())

    def note_absent(self, file: str) -> None:
        """Record that the commit has no such file, so that it is not requested again."""
        path = self._cached / ".no_exist" / self._commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def receive_all(self, files: Sequence[RemoteFile], name: HubName, progress: Progress | None) -> None:
        """Download the files that are missing, one after the other. Raises LlmcliError if the disk is too small."""
        total = sum(file.size for file in files)
        done = sum(self._size_here(file) for file in files)
        free = free_space(cache_folder())
        if total - done > free:
            raise LlmcliError(
                f"{name} needs {readable(total - done)} more, and {cache_folder()} has {readable(free)} free",
                "free some space, or set HF_HOME to a folder on a larger disk",
            )

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress:
                progress(done, total)

        if done < total:
            advance(0)
        for path in {self._path(file).parent for file in files}:
            path.mkdir(parents=True, exist_ok=True)
        if commit_of(name) is None:  # an interrupted update must not replace a complete model
            self.set_ref(name.revision)
        for file in files:
            found = self.fetch_file(file, advance)
            if found != self._path(file):
                _link(found, self._path(file))
        self.set_ref(name.revision)

    def fetch_file(self, file: RemoteFile, advance: Callable[[int], None] = lambda count: None) -> Path:
        """The path of a file, downloaded if necessary, resuming an earlier attempt, and verified."""
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        if file_size(self._path(file)) == file.size:
            return self._path(file)
        blob = self._blob(file)
        lock = cache_folder() / ".locks" / self._cached.name / f"{file.hash}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if _partial(blob).is_symlink():  # not ours: it would be written through
                _partial(blob).unlink()
            if file_size(blob) != file.size:
                self._receive_with_retries(file, _partial(blob), advance)
                _partial(blob).replace(blob)
        return blob

    def _path(self, file: RemoteFile) -> Path:
        return self.folder / file.name

    def _blob(self, file: RemoteFile) -> Path:
        return self._cached / "blobs" / file.hash

    def _size_here(self, file: RemoteFile) -> int:
        """The bytes of the file that are on disk."""
        blob = self._blob(file)
        if file.size in (file_size(self._path(file)), file_size(blob)):
            return file.size
        return min(file_size(_partial(blob)) or 0, file.size)

    def _receive_with_retries(self, file: RemoteFile, part: Path, advance: Callable[[int], None]) -> None:
        """``_receive``, repeated as long as each broken connection made progress."""
        while True:
            before = file_size(part) or 0
            try:
                self._receive(file, part, advance)
                return
            except Exception as error:
                if not is_connection_error(error) or (file_size(part) or 0) - before < RETRY_BYTES:
                    raise

    def _receive(self, file: RemoteFile, part: Path, advance: Callable[[int], None]) -> None:
        """Append the missing bytes to ``part``.

        Raises LlmcliError if the file is truncated, or if its checksum is wrong; then ``part`` is deleted.
        """
        digest = file.digest()
        arrived = _read(part, digest)
        if arrived < file.size:
            with self._response(file, arrived) as response, self._opened(part) as out:
                if arrived and response.status_code != 206:  # the server sends the whole file
                    out.truncate(0)
                    advance(-arrived)
                    arrived, digest = 0, file.digest()
                for chunk in response.iter_bytes():
                    out.write(chunk)
                    digest.update(chunk)
                    arrived += len(chunk)
                    advance(len(chunk))
                    if arrived > file.size:  # the checksum will fail
                        break
        else:
            self._opened(part).close()
        if arrived < file.size:
            raise LlmcliError(f"{host()} sent only {arrived} of the {file.size} bytes of {file.name}", RESUMES)
        if digest.hexdigest() != file.hash:
            part.unlink()
            raise LlmcliError(
                f"{file.name} was damaged in transit: its checksum is wrong, and it was deleted",
                "run the same command again",
            )

    def _opened(self, part: Path) -> BinaryIO:
        """Open the file for appending. Its folders are created only now, so that a rejected request leaves no trace."""
        for folder in (part.parent, self.folder):  # in a valid cache, a repo has a snapshot
            folder.mkdir(parents=True, exist_ok=True)
        return part.open("ab")

    @contextmanager
    def _response(self, file: RemoteFile, start: int) -> Iterator[Any]:
        """The server's response, from byte ``start`` on if it supports that. Raises if the request is rejected."""
        from huggingface_hub import constants, hf_hub_url

        url = hf_hub_url(self._repo, file.name, revision=self._commit, endpoint=endpoint())
        with responding(url, constants.HF_HUB_DOWNLOAD_TIMEOUT, {"Range": f"bytes={start}-"}) as response:
            yield response


def _link(blob: Path, path: Path) -> None:
    """Link ``path`` to ``blob``. If links are not allowed (Windows), move the file, as huggingface_hub does."""
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except FileExistsError:  # another process was faster
        return
    except OSError:
        blob.replace(path)


def _partial(blob: Path) -> Path:
    return blob.with_name(blob.name + ".incomplete")


def _read(path: Path, digest: _Hash) -> int:
    """Feed the file to the digest. Returns its size in bytes, 0 if it does not exist."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
        return file.tell()
