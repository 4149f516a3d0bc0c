"""A prompt's KV cache in a file, so that what was read once need not be read again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from llmcli.generation.steps import forget_stale, shared
from llmcli.model.positions import planned_length
from llmcli.model.transformer import Transformer
from llmcli.storage.cache_file import Fault, Unusable, read_cache, write_cache
from llmcli.storage.fingerprint import fingerprint

Reason = Literal[Fault, "missing", "text", "window", "angles"]


@dataclass(frozen=True)
class Reuse:
    """How many of a prompt's tokens need not be read and, where none, why: None if there was but one.

    The file is "missing", "damaged", of another "version" of llmcli, of another "dtype" or "model"; its "text"
    begins otherwise; a "window" has moved past the place where the texts part; or the "angles" by which positions
    are turned are those of another length.
    """

    tokens: int
    prompt: int
    reason: Reason | None


class PromptCache:
    """``cache`` begins as ``file`` tells and is to be read on from; ``reuse`` says how much of the prompt that was.

    ``max_new_tokens`` are those of the text to come: angles may depend on it. ``seconds`` is how long opening took,
    ``failure`` why saving did not work, if it did not.
    """

    def __init__(self, file: Path, model: Transformer, ids: Sequence[int], max_new_tokens: int) -> None:
        began = time.perf_counter()
        self.file, self.model, self.ids = file, model, list(ids)
        self.cache = model.new_cache()
        self.failure = ""
        self._saved = False  # whether the file tells all of the prompt
        reason = self._open(max_new_tokens)
        self.reuse = Reuse(self.cache.length, len(self.ids), reason)
        self.seconds = time.perf_counter() - began

    @cached_property
    def fingerprint(self) -> str:
        """The model's."""
        return fingerprint(self.model)

    def save(self) -> None:
        """Write what the cache holds of the prompt, all of which must have been read; unless the file tells it already.

        An error is kept as ``failure``: the text that is being written goes on.
        """
        if self._saved:
            return
        try:
            write_cache(self.file, self.ids, self.cache, self.fingerprint)
        except OSError as error:
            self.failure = error.strerror or str(error)

    def _open(self, max_new_tokens: int) -> Reason | None:
        """Fill the cache with what the file tells of a beginning of the prompt; why that is nothing."""
        if not self.file.exists():
            return "missing"
        try:
            held, self.cache = read_cache(self.file, self.model, self.fingerprint)
        except Unusable as error:
            return error.fault
        same, length = shared(held, self.ids), len(self.ids)
        known = min(same, max(length - 1, 0))  # the logits behind the last are wanted, so it is read again
        self.cache.truncate(known)
        if self.cache.length < known:
            return "window"
        config = self.model.config
        total = min(length + max_new_tokens, config.max_position_embeddings)
        self.cache.planned = planned_length(config.rope, length, total)
        forget_stale(self.model, length, self.cache)
        if self.cache.length < known:
            return "angles"
        self._saved = same == length
        return None if same else "text"
