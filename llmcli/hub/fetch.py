"""Downloads from the Hugging Face Hub into its cache.

huggingface_hub finds the files and speaks to the server; the bytes are received here, because it keeps
nothing of an interrupted download and checks the size of a file alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from llmcli.errors import LlmcliError
from llmcli.files.names import CONFIG, INDEX
from llmcli.files.sizes import readable
from llmcli.hub.cache import Progress, cache_folder, commit_of, repo_folder
from llmcli.hub.failures import AGAIN, host, is_of_the_network, quietly, told
from llmcli.hub.files import shards, small_files, weight_files
from llmcli.hub.names import COMMIT, HubName, endpoint
from llmcli.model.families import family_of

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK = 1 << 20
WORTH_A_RETRY = 1 << 20  # bytes after which a broken connection is taken up again by itself

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repo. ``hash`` is its SHA-256, or for a small one Git's own; the cache calls its blob so."""

    name: str
    size: int
    hash: str

    def digest(self) -> _Hash:
        """A fresh digest that ends as ``hash`` when it is fed with the file."""
        if len(self.hash) == 64:
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)


def fetch(name: HubName, progress: Progress | None = None) -> Path:
    """The folder of the model as the hub has it now; what is on disk already is not fetched again.

    ``progress`` is called if anything must be downloaded. Interrupted, it leaves what a next call goes on from.
    Errors: ``failures``, a model without safetensors, a disk that is too small, a file that is not what it should be.
    """
    with told(name), quietly():
        commit, listing = _listing(name)
        download = Download(name.repo, commit)
        try:
            weights = _weights(listing, download)
        except LlmcliError as error:
            raise LlmcliError(f"{name} cannot be used: {error.message}", error.hint) from None
        small = [listing[file] for file in small_files(listing)]
        download.receive_all([*small, *weights], name, progress)  # weights last: a model that has them has all
        if "tokenizer.json" not in listing:
            download.note_absent("tokenizer.json")
        return download.folder


def _weights(listing: Mapping[str, RemoteFile], download: Download) -> list[RemoteFile]:
    """The weights among the files, and their index. Errors: none that llmcli can use, as far as can be told by now."""
    weights = [listing[file] for file in weight_files(listing)]
    if CONFIG in listing:
        try:
            family_of(json.loads(download.received(listing[CONFIG]).read_text(encoding="utf-8")))
        except (ValueError, AttributeError, RecursionError):
            raise LlmcliError("config.json is no JSON object", "the model's files may be damaged") from None
    if listing.get(INDEX) in weights:
        listed = shards(download.received(listing[INDEX]))
        lost = [shard for shard in listed if shard not in listing]
        if lost:
            raise LlmcliError(f"{INDEX} lists {lost[0]}, which is not there", "the model's files may be damaged")
        weights += [listing[shard] for shard in listed]
    return weights


def _listing(name: HubName) -> tuple[str, dict[str, RemoteFile]]:
    """The commit that ``name`` means now, and its files by name."""
    from huggingface_hub import HfApi, constants

    try:
        info = HfApi(endpoint()).model_info(
            name.repo, revision=name.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
        commit = info.sha or ""
        files = {
            file.rfilename: RemoteFile(file.rfilename, file.size, file.lfs.sha256 if file.lfs else file.blob_id)
            for file in info.siblings or []
            if file.size is not None and file.blob_id is not None
        }
        sound = COMMIT.fullmatch(commit) and all(_HASH.fullmatch(file.hash) for file in files.values())
    except (OSError, UnicodeEncodeError):  # an answer that says no; a token that is none
        raise
    except (ValueError, TypeError, KeyError, AttributeError):
        sound = False
    if not sound:
        raise LlmcliError(
            f"{host()} does not answer as a model hub does",
            "check HF_ENDPOINT; a proxy or a login page may stand between",
        )
    return commit, files


class Download:
    """One commit of a repo on its way into the cache."""

    def __init__(self, repo: str, commit: str) -> None:
        self._repo = repo
        self._commit = commit
        self._cached = repo_folder(repo)
        self.folder = self._cached / "snapshots" / commit

    def refer(self, revision: str) -> None:
        """Note which commit the revision stands for."""
        if revision != self._commit:
            path = self._cached / "refs" / revision
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._commit, encoding="utf-8")

    def note_absent(self, file: str) -> None:
        """Note that the commit has no such file, so that nobody asks for it again."""
        path = self._cached / ".no_exist" / self._commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def receive_all(self, files: Sequence[RemoteFile], name: HubName, progress: Progress | None) -> None:
        """All that is not there yet, one after the other. Errors: the disk is too small for them."""
        total = sum(file.size for file in files)
        done = sum(self._size_here(file) for file in files)
        free = _free_space(cache_folder())
        if total - done > free:
            raise LlmcliError(
                f"{name} needs {readable(total - done)} more, and {cache_folder()} has {readable(free)} free",
                "free some, or set HF_HOME to a folder on a larger disk",
            )

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress:
                progress(done, total)

        if done < total:
            advance(0)
        self.folder.mkdir(parents=True, exist_ok=True)
        if commit_of(name) is None:  # an update that breaks off must not take the place of a model that is whole
            self.refer(name.revision)
        for file in files:
            found = self.received(file, advance)
            if found != self._path(file):
                _link(found, self._path(file))
        self.refer(name.revision)

    def received(self, file: RemoteFile, advance: Callable[[int], None] = lambda count: None) -> Path:
        """Where a file lies, fetched if need be, from where an earlier attempt stopped, and checked."""
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        if _size(self._path(file)) == file.size:
            return self._path(file)
        blob = self._blob(file)
        lock = cache_folder() / ".locks" / self._cached.name / f"{file.hash}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if _size(blob) != file.size:
                self._persist(file, _partial(blob), advance)
                _partial(blob).replace(blob)
        return blob

    def _path(self, file: RemoteFile) -> Path:
        return self.folder / file.name

    def _blob(self, file: RemoteFile) -> Path:
        return self._cached / "blobs" / file.hash

    def _size_here(self, file: RemoteFile) -> int:
        """How much of the file is on disk."""
        blob = self._blob(file)
        if file.size in (_size(self._path(file)), _size(blob)):
            return file.size
        return max(0, min(_size(_partial(blob)), file.size))

    def _persist(self, file: RemoteFile, part: Path, advance: Callable[[int], None]) -> None:
        """``_receive``, again and again as long as a connection that broke brought something."""
        while True:
            before = _size(part)
            try:
                self._receive(file, part, advance)
                return
            except Exception as error:
                if not is_of_the_network(error) or _size(part) - before < WORTH_A_RETRY:
                    raise

    def _receive(self, file: RemoteFile, part: Path, advance: Callable[[int], None]) -> None:
        """What ``part`` lacks of the file. Errors: its end is missing; its contents are wrong, so it is deleted."""
        digest = file.digest()
        arrived = _read(part, digest)
        if arrived < file.size:
            with self._response(file, arrived) as response, self._opened(part) as out:
                if arrived and response.status_code != 206:  # it sends the whole file all the same
                    out.truncate(0)
                    advance(-arrived)
                    arrived, digest = 0, file.digest()
                for chunk in response.iter_bytes():
                    out.write(chunk)
                    digest.update(chunk)
                    arrived += len(chunk)
                    advance(len(chunk))
                    if arrived > file.size:  # the checksum will tell
                        break
        else:
            self._opened(part).close()
        if arrived < file.size:
            raise LlmcliError(f"{host()} sent only {arrived} of the {file.size} bytes of {file.name}", AGAIN)
        if digest.hexdigest() != file.hash:
            part.unlink()
            raise LlmcliError(
                f"{file.name} came damaged: its checksum is wrong, and it was deleted", "run the same command again"
            )

    def _opened(self, part: Path) -> BinaryIO:
        """The file to append to. Its folders are made now, so that a refusal leaves no trace."""
        for folder in (part.parent, self.folder):  # the cache is sound only if a repo has a snapshot
            folder.mkdir(parents=True, exist_ok=True)
        return part.open("ab")

    @contextmanager
    def _response(self, file: RemoteFile, start: int) -> Iterator[Any]:
        """The server's answer, from the byte ``start`` on if it can do that. Errors: it refuses."""
        from huggingface_hub import constants, get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

        headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-"}
        url = hf_hub_url(self._repo, file.name, revision=self._commit, endpoint=endpoint())
        with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
            hf_raise_for_status(response)
            yield response


def _link(blob: Path, path: Path) -> None:
    """Let ``path`` be ``blob``. Where links are not allowed (Windows), the file moves: the cache's own way there."""
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except FileExistsError:  # another process was faster
        return
    except OSError:
        blob.replace(path)


def _partial(blob: Path) -> Path:
    return blob.with_name(blob.name + ".incomplete")


def _size(path: Path) -> int:
    """-1 where there is no file: an empty one is a file too."""
    return path.stat().st_size if path.is_file() else -1


def _read(path: Path, digest: _Hash) -> int:
    """Feed the digest with what is in the file, and count it; nothing where there is no file."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
        return file.tell()


def _free_space(folder: Path) -> int:
    """Of the disk on which ``folder`` is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
