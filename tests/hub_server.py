"""A Hugging Face Hub on localhost: the endpoints that a download uses, and every way in which they can fail."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".gguf", "tokenizer.json")  # what the hub keeps as LFS files, known by their SHA-256


@dataclass
class Repo:
    """One commit of a model; ``refs`` are its branches and tags."""

    files: dict[str, bytes]
    refs: tuple[str, ...] = ("main",)
    private: bool = False
    gated: bool = False
    gguf: Any = None  # what the hub says about GGUF files

    @property
    def commit(self) -> str:
        named = [name + hashlib.sha1(data).hexdigest() for name, data in sorted(self.files.items())]
        return hashlib.sha1("".join(named).encode()).hexdigest()

    def listing(self) -> dict[str, Any]:
        """The hub's description of the model, in the form of its API."""
        listing = {"id": "org/name", "sha": self.commit, "siblings": [self._sibling(name) for name in self.files]}
        return listing if self.gguf is None else listing | {"gguf": self.gguf}

    def hash(self, name: str) -> str:
        """The SHA-256 of a large file, or the Git hash of a small one."""
        data = self.files[name]
        if name.endswith(LARGE):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()

    def _sibling(self, name: str) -> dict[str, Any]:
        size = len(self.files[name])
        if name.endswith(LARGE):
            lfs = {"sha256": self.hash(name), "size": size, "pointerSize": 130}
            return {"rfilename": name, "size": size, "blobId": "0" * 40, "lfs": lfs}
        return {"rfilename": name, "size": size, "blobId": self.hash(name)}


@dataclass
class Request:
    """A request that the hub received."""

    method: str
    path: str
    headers: dict[str, str]
    sent: int = 0  # bytes of the file that the response contained


@dataclass
class Hub:
    """The server's state, which a test sets, and its log, which a test reads."""

    port: int = 0
    repos: dict[str, list[Repo]] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)  # old name -> name to which the hub redirects
    log: list[Request] = field(default_factory=list)
    status: int = 0  # respond to every request with this status
    reason: str = ""  # and with this error message
    body: bytes | None = None  # respond to every request with this body
    cut: dict[str, int] = field(default_factory=dict)  # file -> bytes after which the connection breaks, once
    stall: dict[str, int] = field(default_factory=dict)  # file -> bytes after which the server sends nothing more
    short: dict[str, int] = field(default_factory=dict)  # file -> length to which it is truncated, and stated
    long: dict[str, int] = field(default_factory=dict)  # file -> extra bytes sent after the end of the file
    damaged: set[str] = field(default_factory=set)  # files sent with one byte changed
    warning: str = ""  # a message that huggingface_hub shows to its users
    ranges: bool = True  # whether range requests are supported
    continuing: str = ""  # respond to requests for paths that contain this with "100 Continue", again and again
    endless: bool = False  # respond to every request with a JSON object that never ends
    circular: bool = False  # redirect every request to itself
    redirects: bool = False  # redirect to another host for the contents, as the real hub does
    stalled: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, files: dict[str, bytes], name: str = "org/name", **more: Any) -> Repo:
        repo = Repo(files, **more)
        self.repos.setdefault(name, []).append(repo)
        return repo

    def requests_for(self, file: str) -> list[Request]:
        """The GET requests for the contents of ``file``, in order."""
        return [request for request in self.log if request.method == "GET" and request.path.endswith(f"/{file}")]


@contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub for the duration of the ``with`` block."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = _Server(("127.0.0.1", 0), Handler)
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Ignore errors: in some tests the client disconnects."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Hub

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.state, unquote(urlsplit(self.path).path)
        request = Request(self.command, path, {name.lower(): value for name, value in self.headers.items()})
        hub.log.append(request)
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path)
        content = re.fullmatch(r"/(cdn/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if "/api/" in path and "listing" in hub.stall:
            hub.closing.wait()
        if hub.continuing and hub.continuing in path:
            while not hub.closing.is_set():
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
        if hub.endless:
            self._answer(200, b'{"siblings": [', announced=1 << 40)
            while not hub.closing.is_set():
                self.wfile.write(b"[]," * 1000)
        elif hub.circular:
            self._answer(302, b"", {"Location": self.path})
        elif hub.status:
            self._answer(hub.status, b"no", {"X-Error-Message": hub.reason})
        elif hub.body is not None:
            self._answer(200, hub.body)
        elif old := re.fullmatch(r"(/(?:api/models/)?)([^/]+)(/(?:revision|resolve)/.+)", path):
            if old[2] in hub.renamed:
                query = f"?{urlsplit(self.path).query}"
                self._answer(307, b"", {"Location": f"{old[1]}{hub.renamed[old[2]]}{old[3]}{query}"})
            else:
                self._answer(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif listing:
            if repo := self._repo(*listing.groups()):
                self._answer(200, json.dumps(repo.listing()).encode())
        elif content:
            cdn, name, revision, file = content.groups()
            if cdn or (repo := self._repo(name, revision)):
                repo = next(r for r in hub.repos[name] if r.commit == revision) if cdn else repo
                self._file(request, repo, file, bool(cdn))
        else:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _repo(self, name: str, revision: str) -> Repo | None:
        """The requested commit; None after sending an error response."""
        versions = self.state.repos.get(name, [])
        token = self.headers.get("Authorization") == "Bearer hf_right"
        found = [repo for repo in versions if revision in (repo.commit, *repo.refs)]
        if not versions or (versions[0].private and not token):
            self._answer(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif not found:
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif found[-1].gated and not token and "/resolve/" in self.path:
            self._answer(401, b"", {"X-Error-Code": "GatedRepo"})
        else:
            return found[-1]
        return None

    def _file(self, request: Request, repo: Repo, name: str, is_cdn: bool) -> None:
        hub, data = self.state, repo.files[name]
        if hub.redirects and not is_cdn:
            self._answer(302, b"", {"Location": f"http://localhost:{hub.port}/cdn{self.path}"})
            return
        data = data[: hub.short.get(name, len(data))] + bytes(hub.long.get(name, 0))
        if name in hub.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if hub.ranges else None
        start = int(wanted[1]) if wanted else 0
        headers = {"ETag": f'"{repo.hash(name)}"', "X-Repo-Commit": repo.commit}
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        end = min(hub.cut.pop(name, len(data)), hub.stall.get(name, len(data)))
        request.sent = max(0, end - start)  # set first: the client may read it as soon as it has the response
        self._answer(206 if wanted else 200, data[start:end], headers, announced=len(data) - start)
        if name in hub.stall:
            hub.stalled.set()
            hub.closing.wait()
        if end < len(data):
            self.close_connection = True

    def _answer(
        self, status: int, data: bytes, headers: dict[str, str] | None = None, *, announced: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if self.state.warning:
            self.send_header("X-HF-Warning", self.state.warning)
        self.send_header("Content-Length", str(len(data) if announced is None else announced))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
            self.wfile.flush()
