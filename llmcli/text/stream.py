"""Streaming text: token ids in, text out that is safe to show, without partial characters or stop strings."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from llmcli.text.tokenizer import Tokenizer


class TextStream:
    """Turns ids into text one at a time; all texts joined equal the decoded whole without the prompt.

    (One exception: byte-fallback decoders turn a whole run of bytes into U+FFFD when its end is incomplete. Characters
    of that run that were already shown stay.) Each call decodes only a short window that starts at the last shown text,
    so the cost of a token is constant. Text that may be the beginning of a stop string is held back. ``stopped`` is the
    stop string that occurred; it is not part of the text. Of special tokens only those in ``shown`` are.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int] = (),
        stop: Sequence[str] = (),
        shown: Collection[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self._hidden = tokenizer.special_ids.difference(shown)
        self._skips = not tokenizer.special_ids.intersection(shown)
        self.stop = tuple(stop)
        self.stopped: str | None = None
        self._window = list(prompt_ids)  # ids whose text was shown, then ids whose text was not
        self._shown = len(self._window)  # the number of the former
        self._held = ""  # text that may be the beginning of a stop string

    def feed(self, id: int) -> str:
        """Return the text that this token completes: usually its own, sometimes none or that of several tokens."""
        if id in self._hidden:
            return ""
        self._window.append(id)
        text = self._new_text()
        if not text or text.endswith("\ufffd"):
            return ""
        self._window = self._window[self._shown :]
        self._shown = len(self._window)
        return self._before_stop(text)

    def finish(self) -> str:
        """Return the text that is still held back, after the last token."""
        text = self._before_stop(self._new_text())
        self._window, self._shown = [], 0
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _new_text(self) -> str:
        """The text of the ids that were not shown."""
        before = self._decode(self._window[: self._shown])
        text = self._decode(self._window)
        # With byte fallback, incomplete bytes may change text that was shown; then they are decoded separately.
        return text[len(before) :] if text.startswith(before) else self._decode(self._window[self._shown :])

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special=self._skips)

    def _before_stop(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self.stop if (start := text.find(stop)) >= 0]
        if found:  # the stop string that is complete first, independent of how the text is split into tokens
            _, start, self.stopped = min(found)
            self._held = ""
            return text[:start]
        held = max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of ``text`` that is a proper prefix of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
