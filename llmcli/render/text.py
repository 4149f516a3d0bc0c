"""Text made safe and readable: visible control characters, tokens on one line, counts with their noun."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol


class TokenText(Protocol):
    """Anything with a token's text and bytes: a vocabulary entry, a candidate, a generated token."""

    @property
    def text(self) -> str: ...
    @property
    def bytes(self) -> bytes: ...


def escape_controls(text: str) -> str:
    """Return ``text`` with visible symbols for control characters, except line feeds and tabs.

    A model may write escape sequences, and a terminal would obey them.
    """
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: _symbol(match[0]), text)


def one_line(text: str) -> str:
    """Return ``text`` on one line, with symbols for control characters, line breaks and direction marks."""
    text = escape_controls(text.replace("\n", "⏎").replace("\t", "⇥"))
    return re.sub("[\u2028-\u202e\u2066-\u2069]", lambda match: f"<{ord(match[0]):04X}>", text)


def text_label(text: str) -> str:
    """Return ``text`` on one line with visible spaces: "·the", "⏎⏎"."""
    return one_line(text.replace(" ", "·"))


def token_label(token: TokenText) -> str:
    """Return a token on one line with visible spaces; incomplete characters are shown as bytes: "·the", "<E2 80>".

    A token without bytes (some servers send none) is shown by its text.
    """
    text = token.bytes.decode("utf-8", "surrogateescape") if token.bytes else token.text
    return re.sub("[\udc80-\udcff]+", lambda match: _hex(match[0].encode("utf-8", "surrogateescape")), text_label(text))


def _hex(data: bytes) -> str:
    return f"<{data.hex(' ').upper()}>"


def _symbol(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"<{code:02X}>"


def rate(tokens: float) -> str:
    """Return a speed in tokens per second, with a decimal below 10: "217", "4.3", "0.07"."""
    return f"{tokens:.0f}" if tokens >= 9.95 else f"{tokens:.1f}" if tokens >= 0.095 else f"{tokens:.1g}"


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers, three or more in a row as the first and the last: "0-2, 4, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def counted(count: int, noun: str) -> str:
    """Return the count with its noun: "1 token", "2 tokens". For nouns whose plural ends in s."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
