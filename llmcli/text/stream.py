"""Token ids as they come -> text as it can be shown: never half a character, never part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from llmcli.text.tokenizer import Tokenizer


class TextStream:
    """Feed ids, get text; all chunks and ``finish`` joined are the decoded whole, less the prompt.

    (One exception: byte-fallback decoders turn a whole run of bytes into U+FFFD when its end is
    broken; characters that were complete before that have been shown, and stay.)
    Decodes a short window each time, from the last place where text came out, so that the cost of
    a token does not grow. With stop strings, text that may be the beginning of one is held back;
    ``stopped`` is the stop string that was met, which is not part of the text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = (), stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.stopped: str | None = None
        self._ids = list(prompt_ids)  # the window: ids shown already, then ids that wait
        self._shown = len(self._ids)  # how many of the window's ids were shown
        self._held = ""  # text that may yet turn into a stop string

    def feed(self, id: int) -> str:
        """The text that this token completes; often its own, sometimes none, once in a while more."""
        if id in self.tokenizer.special_ids:
            return ""
        self._ids.append(id)
        text = self._waiting()
        if not text or text.endswith("\ufffd"):
            return ""
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        return self._past_stops(text)

    def finish(self) -> str:
        """What was held back, when no more tokens come."""
        text = self._past_stops(self._waiting())
        self._ids, self._shown = [], 0
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _waiting(self) -> str:
        """The text of the ids that were not shown yet."""
        before = self.tokenizer.decode(self._ids[: self._shown])
        text = self.tokenizer.decode(self._ids)
        # Byte fallback may take back what was shown, when broken bytes follow: then they stand alone.
        return text[len(before) :] if text.startswith(before) else self.tokenizer.decode(self._ids[self._shown :])

    def _past_stops(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [(place + len(stop), place, stop) for stop in self.stop if (place := text.find(stop)) >= 0]
        if found:  # the one that is complete first, as if the text had come character by character
            _, place, self.stopped = min(found)
            self._held = ""
            return text[:place]
        held = max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` with which ``stop`` begins."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
