"""The KV cache of a prompt in a file, so that a prompt with the same beginning is not read again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from llmcli.errors import LlmcliError
from llmcli.generation.context import angle_length
from llmcli.generation.reading import clear_if_stale, common_prefix
from llmcli.model.transformer import Transformer
from llmcli.storage.cache_file import Fault, Unusable, read_cache, write_cache
from llmcli.storage.fingerprint import fingerprint

Reason = Literal[Fault, "missing", "text", "window", "state", "angles"]


@dataclass(frozen=True)
class Reuse:
    """How many tokens of a ``prompt`` of this many tokens come from the file, and the ``reason`` if none do.

    The file is "missing", "damaged", or from another "version" of llmcli, another "dtype" or another "model". Its
    "text" begins differently; its sliding "window" has moved past the position where the texts diverge, or the "state"
    of its recurrent layers is that after more of another text; or its rotary "angles" belong to another length. A
    prompt of one token has no reason.
    """

    tokens: int
    prompt: int
    reason: Reason | None


class PromptCache:
    """``cache`` is filled from ``file`` with a prefix of the prompt; ``reuse`` says how much of it.

    ``max_new_tokens`` are those of the text to come, on which rotary angles may depend. ``seconds`` is how long opening
    the file took, ``failure`` the error if it could not be saved.
    """

    def __init__(self, file: Path, model: Transformer, ids: Sequence[int], max_new_tokens: int) -> None:
        began = time.perf_counter()
        self.file, self.model, self.ids = file, model, list(ids)
        self.cache = model.new_cache()
        self.failure: LlmcliError | None = None
        self._saved = False  # whether the file has the whole prompt
        reason = self._open(max_new_tokens)
        self.reuse = Reuse(self.cache.length, len(self.ids), reason)
        self.seconds = time.perf_counter() - began

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the model."""
        return fingerprint(self.model)

    def save(self) -> None:
        """Write the whole prompt, which must have been read, to the file unless it has it already.

        Errors are kept in ``failure`` and not raised, so that generation continues.
        """
        if self._saved:
            return
        try:
            write_cache(self.file, self.ids, self.cache, self.fingerprint)
        except LlmcliError as error:
            self.failure = error

    def _open(self, max_new_tokens: int) -> Reason | None:
        """Fill the cache with the common prefix of the file and the prompt; returns the reason if there is none."""
        if not self.file.exists():
            return "missing"
        try:
            held, self.cache = read_cache(self.file, self.model, self.fingerprint)
        except Unusable as error:
            return error.fault
        common, length = common_prefix(held, self.ids), len(self.ids)
        usable = min(common, max(length - 1, 0))  # the last token is read again, because its logits are needed
        self.cache.truncate(usable)
        if self.cache.length < usable:
            return "state" if self.cache.recurrent else "window"
        self.cache.planned = angle_length(self.model.config, length, max_new_tokens)
        clear_if_stale(self.model, length, self.cache)
        if self.cache.length < usable:
            return "angles"
        self._saved = common >= (length - 1 if self.cache.recurrent else length)
        return None if common else "text"
