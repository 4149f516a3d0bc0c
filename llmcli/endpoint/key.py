"""The key of a server: where it may come from, where it may go, and that it is shown nowhere."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from llmcli.endpoint.address import Address
from llmcli.errors import usage_error

VARIABLE = "LLMCLI_API_KEY"
OPENAI = "OPENAI_API_KEY"  # of which other programs expect that it goes to its owner alone
SHORT = 8  # characters: what is shorter, such as EMPTY, is no secret, and stands in many a text


class Key:
    """A secret. ``without`` takes it out of whatever a server sent."""

    def __init__(self, value: str) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "Key(hidden)"

    def without(self, found: Any) -> Any:
        """Text, or JSON of any depth, with the key replaced by [key]: a server may send back what it was sent."""
        if isinstance(found, str):
            return found if len(self.value) < SHORT else found.replace(self.value, "[key]")
        if isinstance(found, list):
            return [self.without(part) for part in found]
        if isinstance(found, dict):
            return {self.without(name): self.without(part) for name, part in found.items()}
        return found


def find_key(address: Address, file: Path | None) -> Key | None:
    """The key of the file, else of the environment; None where there is none.

    Errors: no such file, text that is no key, or a wire that anybody could read it from.
    """
    if file is not None:
        value, source = _of_file(file), str(file)
    elif os.environ.get(VARIABLE):
        value, source = os.environ[VARIABLE].strip(), VARIABLE
    elif os.environ.get(OPENAI) and address.of_openai:
        value, source = os.environ[OPENAI].strip(), OPENAI
    else:
        return None
    if not re.fullmatch(r"[!-~]+", value):
        raise usage_error(f"{source} holds no key", "one line without spaces, of plain letters, digits and signs")
    if not (address.encrypted or address.here):
        raise usage_error(
            f"the key in {source} would go to {address.host} for everybody to read",
            "give an address that begins with https://, or unset the key",
        )
    return Key(value)


def _of_file(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig").strip()
    except OSError as error:
        raise usage_error(f"{file}: {error.strerror or error}", "--api-key-file takes a file with a key") from None
    except UnicodeDecodeError:
        raise usage_error(f"{file} holds no key", "--api-key-file takes a text file") from None
