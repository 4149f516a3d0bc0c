"""Where a server is: what the user typed, as the address that requests go to."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from llmcli.errors import usage_error

EXAMPLE = "as in http://localhost:8000"


@dataclass(frozen=True)
class Address:
    """``base`` is what paths such as /models are put behind; ``host`` names it to the user, with its port."""

    base: str
    host: str
    domain: str
    encrypted: bool

    @property
    def of_openai(self) -> bool:
        """Whether it is OpenAI's own."""
        return self.encrypted and re.search(r"(^|\.)openai\.com$", self.domain) is not None

    @property
    def here(self) -> bool:
        """Whether it is this very machine, which no wire lies between."""
        if self.domain == "localhost" or self.domain.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(self.domain).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """``text`` with or without /v1 at its end. Errors: no address of the web; one that holds a password or a query.

    No error quotes it: it may hold what nobody else should see.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise usage_error("--endpoint is no address", EXAMPLE) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not text.isprintable() or " " in text:
        raise usage_error("--endpoint is no address that begins with http:// or https://", EXAMPLE)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise usage_error(
            "--endpoint holds more than an address", "a key belongs into LLMCLI_API_KEY or a file: --api-key-file"
        )
    domain = parts.hostname
    host = f"[{domain}]" if ":" in domain else domain
    host += f":{port}" if port is not None else ""
    path = parts.path.rstrip("/")
    if not any(re.fullmatch(r"v\d\w*", part) for part in path.split("/")):
        path += "/v1"
    return Address(f"{parts.scheme}://{host}{path}", host, domain, parts.scheme == "https")
