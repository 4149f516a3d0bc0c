"""Text made safe and readable: control characters as symbols, tokens on one line, counts with their noun."""

from __future__ import annotations

import re


def escape_controls(text: str) -> str:
    """Text with its control characters as visible symbols, for a terminal: a model may write escape sequences."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: _symbol(match[0]), text)


def one_line(text: str) -> str:
    """``harmless`` text on one line, from left to right: line ends and marks of direction are shown as well."""
    text = escape_controls(text.replace("\n", "⏎").replace("\t", "⇥"))
    return re.sub("[\u2028-\u202e\u2066-\u2069]", lambda match: f"<{ord(match[0]):04X}>", text)


def token_label(text: str, data: bytes) -> str:
    """A token on one line: spaces as a dot, line ends and controls as symbols, parts of characters as <E2 80>."""
    if data:
        text = data.decode("utf-8", "surrogateescape")
    text = one_line(text.replace(" ", "·"))
    return re.sub("[\udc80-\udcff]+", lambda match: _hex(match[0].encode("utf-8", "surrogateescape")), text)


def _hex(data: bytes) -> str:
    return f"<{data.hex(' ').upper()}>"


def _symbol(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"<{code:02X}>"


def counted(count: int, noun: str) -> str:
    """ "1 token", "2 tokens": for nouns that take an s."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
