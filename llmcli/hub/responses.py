"""Responses of the hub, bounded in time and, for the list of a model's files, in size."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from llmcli.errors import LlmcliError
from llmcli.hub.errors import host, timed_out
from llmcli.hub.names import COMMIT, HubName, endpoint

if TYPE_CHECKING:
    from hashlib import _Hash

PATIENCE = 6  # a response must begin within this many times the longest wait for a packet
MAX_LISTING = 2**26  # bytes: some hundred thousand files

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repo. ``hash`` is its SHA-256, or Git's SHA-1 for a small file, and the name of its blob."""

    name: str
    size: int
    hash: str

    def digest(self) -> _Hash:
        """A new digest that equals ``hash`` after it has read the file."""
        if len(self.hash) == 64:
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)


@dataclass(frozen=True)
class Listing:
    """A commit of a repo and its files by name. ``architecture`` is that of its GGUF files, if the hub states one."""

    commit: str
    files: Mapping[str, RemoteFile]
    architecture: str | None


def list_files(name: HubName) -> Listing:
    """The commit that ``name`` refers to, and its files.

    Raises LlmcliError if the response is not that of a hub, or does not end.
    """
    from huggingface_hub import constants

    url = f"{endpoint()}/api/models/{name.repo}/revision/{quote(name.revision, safe='')}?blobs=true"
    seconds = constants.HF_HUB_ETAG_TIMEOUT
    with responding(url, seconds, {}) as response:
        body, end = bytearray(), time.monotonic() + PATIENCE * seconds
        for chunk in response.iter_bytes():
            body += chunk
            if time.monotonic() > end:
                raise timed_out()
            if len(body) > MAX_LISTING:
                raise _not_a_hub()
    try:
        info = json.loads(body)
        commit, siblings = info["sha"], info["siblings"]
        files = [_remote_file(file) for file in siblings if None not in (file.get("size"), file.get("blobId"))]
        valid = COMMIT.fullmatch(commit) is not None
        described = info.get("gguf")
        architecture = described.get("architecture") if isinstance(described, dict) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise _not_a_hub()
    return Listing(commit, {file.name: file for file in files}, architecture if isinstance(architecture, str) else None)


def _not_a_hub() -> LlmcliError:
    return LlmcliError(
        f"{host()} does not respond like a model hub",
        "check HF_ENDPOINT; a proxy or a login page may be in between",
    )


def _remote_file(sibling: Mapping[str, Any]) -> RemoteFile:
    """A file as the hub describes it. Raises ValueError, TypeError and the like if the description makes no sense."""
    large = sibling.get("lfs")
    file = RemoteFile(sibling["rfilename"], sibling["size"], large["sha256"] if large else sibling["blobId"])
    is_size = type(file.size) is int and 0 <= file.size < 2**63
    if not isinstance(file.name, str) or not is_size or not _HASH.fullmatch(file.hash):
        raise ValueError(file)
    return file


@contextmanager
def responding(url: str, seconds: float, headers: Mapping[str, str]) -> Iterator[Any]:
    """The hub's response to a GET request. ``seconds`` is the longest wait for a packet.

    A hub could send informational responses ("100 Continue") forever, so the whole time until the response begins is
    bounded as well. Raises the errors of huggingface_hub, and LlmcliError if the response does not begin.
    """
    from huggingface_hub import close_session, get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    passed = threading.Event()

    def give_up() -> None:
        passed.set()
        close_session()  # the next request opens a new one

    timer = threading.Timer(PATIENCE * seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        own = {**build_hf_headers(), "Accept-Encoding": "identity", **headers}
        with get_session().stream("GET", url, headers=own, timeout=seconds) as response:
            timer.cancel()
            hf_raise_for_status(response)
            yield response
    except Exception:
        if passed.is_set():
            raise timed_out() from None
        raise
    finally:
        timer.cancel()
