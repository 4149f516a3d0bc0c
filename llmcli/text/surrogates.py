"""Surrogates: halves of a character in UTF-16, which JSON may contain, and lone ones, which no UTF-8 text can have."""

from __future__ import annotations


def is_unicode(text: str) -> bool:
    """Whether ``text`` has no lone surrogates, which come from bytes that could not be decoded."""
    return not any(0xD800 <= ord(char) <= 0xDFFF for char in text)


class SurrogateJoiner:
    """Joins surrogate pairs that are split between two chunks: 🙂 as \\ud83d in one and \\ude42 in the next."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """Return ``text`` except for a high surrogate at its end, which waits for the next chunk."""
        text = self._held + text
        self._held = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return join_surrogates(text[: len(text) - len(self._held)])

    def finish(self) -> str:
        """Return what is still held, as U+FFFD."""
        held, self._held = self._held, ""
        return join_surrogates(held)


def join_surrogates(text: str) -> str:
    """Replace each surrogate pair with its character, and each lone surrogate with U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
