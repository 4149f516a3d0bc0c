"""Characters that JSON wrote as two halves, which may come in two pieces."""

from __future__ import annotations


class Halves:
    """``feed`` gives the text of a piece, less half a character at its end, which waits for the other half."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """Whole characters; a half that found no other is U+FFFD."""
        text = self._held + text
        self._held = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return whole(text[: len(text) - len(self._held)])

    def finish(self) -> str:
        """What still waits."""
        held, self._held = self._held, ""
        return whole(held)


def whole(text: str) -> str:
    """The text with its halves made whole, where two follow each other."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
