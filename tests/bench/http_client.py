"""A small HTTP client for load tests: it can stop halfway, read slowly, and send what no client should."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

SMALL = 2**12  # bytes that a connection reads ahead: a slow reader holds up its server


@dataclass
class Connection:
    """A connection that may send several requests, one after the other."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, url: str) -> Connection:
        """Connect to the server at ``url``."""
        host = urlsplit(url)
        return cls(*await asyncio.open_connection(host.hostname, host.port, limit=SMALL))

    async def send(self, path: str, body: Any, headers: str = "") -> None:
        """Send a request: a POST of ``body``, as JSON unless it is bytes, or a GET without one."""
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        headers = headers or f"Content-Length: {len(data)}\r\n"
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}\r\n"
        self.writer.write(head.encode() + data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """The status of the answer, and its headers."""
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        return int(first.split()[1]), {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }

    async def parts(self, headers: dict[str, str], pause: float = 0.0) -> AsyncIterator[bytes]:
        """Yield the body of the answer as it comes, after a ``pause`` before each part."""
        if "content-length" in headers:
            yield await self.reader.readexactly(int(headers["content-length"]))
            return
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            await asyncio.sleep(pause)
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)

    async def answer(self, path: str, body: Any, headers: str = "") -> tuple[int, dict[str, str], bytes]:
        """Send a request; return status, headers and body of the whole answer."""
        await self.send(path, body, headers)
        status, found = await self.head()
        return status, found, b"".join([part async for part in self.parts(found)])

    def close(self) -> None:
        """Close the connection at once, whatever is still to come."""
        self.writer.transport.abort()


def events(data: bytes) -> list[dict[str, Any]]:
    """The objects of a stream of server-sent events."""
    lines = [line for line in data.decode().replace("\r", "").split("\n") if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]
