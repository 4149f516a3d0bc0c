"""A server's address, the API key to send there, and which key may go to which address."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llmcli.errors import usage_error
from llmcli.files.reading import read_file

KEY_VARIABLE = "LLMCLI_API_KEY"
OPENAI_KEY_VARIABLE = "OPENAI_API_KEY"  # users expect it to be sent to OpenAI only
MAX_BYTES = 2**16  # of a key's file
HIDDEN = "[key]"  # what is shown in place of a key
MIN_SECRET = 8  # characters: a shorter key, such as EMPTY, is not a secret and may occur in ordinary text


@dataclass(frozen=True)
class Address:
    """A server's address. ``base`` is the URL to which paths such as /models are added; ``host`` includes the port."""

    base: str
    host: str
    domain: str
    encrypted: bool

    @property
    def is_openai(self) -> bool:
        """Whether the server is OpenAI's own."""
        return self.encrypted and re.search(r"(^|\.)openai\.com$", self.domain) is not None

    @property
    def is_loopback(self) -> bool:
        """Whether the server runs on this machine, so that nothing crosses a network."""
        if self.domain == "localhost" or self.domain.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(self.domain).is_loopback
        except ValueError:
            return False


def parse_address(url: str) -> Address:
    """Parse the URL of a server, with or without /v1 at its end.

    Raises LlmcliError if ``url`` is not an http or https URL, or holds a password, a query or a fragment. No message
    quotes the URL, because it may hold a secret.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise usage_error("the server address is not a URL", kind="server-address") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable() or " " in url:
        raise usage_error("the server address does not begin with http:// or https://", kind="server-address")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise usage_error(
            "the server address contains a user name, a query or a fragment", kind="server-address-with-secret"
        )
    domain = parts.hostname
    host = f"[{domain}]" if ":" in domain else domain
    host += f":{port}" if port is not None else ""
    path = parts.path.rstrip("/")
    if not any(re.fullmatch(r"v\d\w*", part) for part in path.split("/")):
        path += "/v1"
    return Address(f"{parts.scheme}://{host}{path}", host, domain, parts.scheme == "https")


class ApiKey:
    """A secret that ``repr`` does not show and that ``redact`` removes from whatever a server sends."""

    def __init__(self, value: str) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "ApiKey(hidden)"

    def redact(self, data: Any) -> Any:
        """Return text, or JSON of any depth, with the key replaced by ``HIDDEN``: a server may echo its request."""
        if isinstance(data, str):
            return data if len(self.value) < MIN_SECRET else data.replace(self.value, HIDDEN)
        if isinstance(data, list):
            return [self.redact(element) for element in data]
        if isinstance(data, dict):
            return {self.redact(name): self.redact(value) for name, value in data.items()}
        return data


def own_key(file: Path | None) -> ApiKey | None:
    """Return the key that a server on this machine demands, from ``file`` or the environment; None if there is none.

    Raises LlmcliError if the file is unreadable or its text is not a key.
    """
    return find_key(parse_address("http://localhost"), file)


def find_key(address: Address, file: Path | None) -> ApiKey | None:
    """Return the key in ``file``, or else that of the environment; None if there is none.

    OPENAI_API_KEY is used for OpenAI's own server only. Raises LlmcliError if the file is unreadable, its text is not a
    key, or the connection to another machine is not encrypted.
    """
    if file is not None:
        value, source = _read_key_file(file), str(file)
    elif os.environ.get(KEY_VARIABLE):
        value, source = os.environ[KEY_VARIABLE].strip(), KEY_VARIABLE
    elif os.environ.get(OPENAI_KEY_VARIABLE) and address.is_openai:
        value, source = os.environ[OPENAI_KEY_VARIABLE].strip(), OPENAI_KEY_VARIABLE
    else:
        return None
    if not re.fullmatch(r"[!-~]+", value):
        raise usage_error(f"{source} does not contain an API key", "a key is one line of ASCII characters, no spaces")
    if not (address.encrypted or address.is_loopback):
        raise usage_error(
            f"the key in {source} would be sent to {address.host} unencrypted",
            "use an address that begins with https://, or unset the key",
        )
    return ApiKey(value)


def _read_key_file(file: Path) -> str:
    try:
        return read_file(file, MAX_BYTES, pipes=True).decode("utf-8-sig").strip()
    except OSError as error:
        raise usage_error(f"{file}: {error.strerror or error}", kind="api-key-file") from None
    except UnicodeDecodeError:
        raise usage_error(f"{file} does not contain an API key: it is not UTF-8 text", kind="api-key-file") from None
