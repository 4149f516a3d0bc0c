"""A generation as its reader sees it: the loop's steps together with the text that each completes, timed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Literal

from llmcli.generate.loaded import LoadedModel
from llmcli.generate.sampling import Sampler
from llmcli.generate.steps import Finish, Guesser, Step, steps
from llmcli.model.config import ModelConfig
from llmcli.model.rope import planned, span
from llmcli.text.stream import TextStream

Ended = Finish | Literal["stop_string", "interrupted"]


class Generation:
    """Iterate to get (step, text) pairs; then the fields tell how it went. Iterate once.

    ``prefill_seconds`` run from the start to the first token, ``decode_seconds`` from there to the end.
    ``turned_for`` is the length in tokens that positions were fixed for, where the model's angles
    depend on it (see ``rope.planned``), else 0.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompt_ids: Sequence[int],
        *,
        sampler: Sampler,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        guesser: Guesser | None = None,
    ) -> None:
        self.prompt_tokens = len(prompt_ids)
        self.turned_for = planned_angles(loaded.model.config, len(prompt_ids), max_new_tokens)
        self.guesser = guesser
        self.finish: Ended = "length"
        self.text = ""
        self.tokens = 0
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0
        self._ids = list(prompt_ids)
        self._grammar = sampler.grammar
        self._stream = TextStream(loaded.tokenizer, prompt_ids, stop)
        self._steps = steps(
            loaded.model,
            prompt_ids,
            sampler=sampler,
            max_new_tokens=max_new_tokens,
            stop_ids=loaded.stop_ids,
            guesser=guesser,
        )

    def __iter__(self) -> Iterator[tuple[Step, str]]:
        """The text of the last step includes what was held back."""
        began = time.perf_counter()
        for step in self._steps:
            if not self.tokens:
                self.prefill_seconds = time.perf_counter() - began
            self.tokens += 1
            self._ids.append(step.token)
            # The token that ends a text is no part of it, special or not.
            text = self._stream.feed(step.token) if step.finish != "stop_token" else ""
            if step.finish:
                self.finish = step.finish
                text += self._stream.finish()
            if self._stream.stopped:
                self.finish = "stop_string"
            self.text += text
            self.decode_seconds = time.perf_counter() - began - self.prefill_seconds
            yield step, text
            if self._stream.stopped:
                return

    @property
    def valid(self) -> bool | None:
        """Whether the text, where it stands, is what the grammar asks for; None without one."""
        return None if self._grammar is None else self._grammar.ending(self._ids) != "not yet"

    def interrupt(self) -> str:
        """Stop early, as interrupted; the text that was held back until now."""
        self.finish = "interrupted"
        text = self._stream.finish()
        self.text += text
        return text


def planned_angles(config: ModelConfig, prompt: int, max_new_tokens: int) -> int:
    """The length that the angles of a growing text are fixed for; 0 where they do not depend on it."""
    total = min(prompt + max_new_tokens, config.max_position_embeddings)
    length = span(config.rope, planned(config.rope, prompt, total))
    return length if length == total else 0
