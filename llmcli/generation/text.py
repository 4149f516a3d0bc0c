"""A generation as its reader sees it: the loop's steps together with the text that each completes, timed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Literal

from llmcli.generation.loaded import LoadedModel
from llmcli.generation.prompt_cache import PromptCache
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import Finish, Guesser, Step, steps
from llmcli.model.cache import KVCache
from llmcli.model.config import ModelConfig
from llmcli.model.positions import planned_length, span
from llmcli.text.stream import TextStream
from llmcli.text.tokenizer import Tokenizer

Ended = Finish | Literal["stop_string", "interrupted"]


class Writing:
    """The text that steps make: what each completes, ``text`` so far, its ``tokens``, and how it ended.

    ``length`` is how many tokens of the context are taken, prompt and all. ``valid`` tells whether the text is what a
    grammar asks for, where there is one.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop: Sequence[str] = ()) -> None:
        self.finish: Ended = "length"
        self.text = ""
        self.tokens = 0
        self.length = len(prompt_ids)
        self.valid: bool | None = None
        self._stream = TextStream(tokenizer, prompt_ids, stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string came: then no step may follow."""
        return self._stream.stopped is not None

    def take(self, step: Step) -> str:
        """The text that a step completes; that of the last includes what was held back."""
        self.tokens += 1
        self.length = step.position + 1
        self.valid = None if step.ending is None else step.ending != "not yet"
        # The token that ends a text is no part of it, special or not.
        text = self._stream.feed(step.token) if step.finish != "stop_token" else ""
        if step.finish:
            self.finish = step.finish
            text += self._stream.finish()
        if self.stopped:
            self.finish = "stop_string"
        self.text += text
        return text

    def interrupt(self) -> str:
        """Stop early, as interrupted; the text that was held back until now."""
        self.finish = "interrupted"
        text = self._stream.finish()
        self.text += text
        return text


class Generation(Writing):
    """A writing and the loop behind it: iterate, once, to get (step, text) pairs; then the fields tell how it went.

    ``prefill_seconds`` run from the start to the first token, ``decode_seconds`` from there to the end.
    ``turned_for`` is the length in tokens that positions were fixed for, where the model's angles
    depend on it (see ``positions``), else 0. ``cache`` may hold a beginning of the prompt; see ``steps``.
    A ``prompt_cache`` comes in its place; it is saved behind the first token, so that what comes later loses nothing.
    Of its time, opening counts as prefill, and saving as neither.
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
        cache: KVCache | None = None,
        rolls: bool = False,
        prompt_cache: PromptCache | None = None,
    ) -> None:
        super().__init__(loaded.tokenizer, prompt_ids, stop)
        if sampler.grammar is not None:
            self.valid = sampler.grammar.ending(prompt_ids) != "not yet"
        self.prompt_tokens = len(prompt_ids)
        self.turned_for = planned_angles(loaded.model.config, len(prompt_ids), max_new_tokens)
        self.guesser = guesser
        self.prompt_cache = prompt_cache
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0
        self._steps = steps(
            loaded.model,
            prompt_ids,
            sampler=sampler,
            max_new_tokens=max_new_tokens,
            stop_ids=loaded.stop_ids,
            cache=cache if prompt_cache is None else prompt_cache.cache,
            guesser=guesser,
            rolls=rolls,
        )

    def __iter__(self) -> Iterator[tuple[Step, str]]:
        began = time.perf_counter() - (self.prompt_cache.seconds if self.prompt_cache else 0.0)
        for step in self._steps:
            if not self.tokens:
                self.prefill_seconds = time.perf_counter() - began
            text = self.take(step)
            self.decode_seconds = time.perf_counter() - began - self.prefill_seconds
            yield step, text
            if step.index == 0 and self.prompt_cache is not None:
                paused = time.perf_counter()
                self.prompt_cache.save()
                began += time.perf_counter() - paused
            if self.stopped:
                self._steps.close()
                return

    def interrupt(self) -> str:
        self._steps.close()  # or it would cut its cache when Python clears it away, which may be much later
        return super().interrupt()


def planned_angles(config: ModelConfig, prompt: int, max_new_tokens: int) -> int:
    """The length that the angles of a growing text are fixed for; 0 where they do not depend on it."""
    total = min(prompt + max_new_tokens, config.max_position_embeddings)
    length = span(config.rope, planned_length(config.rope, prompt, total))
    return length if length == total else 0
