"""Generated text: the steps of the loop together with the text that each one completes, timed."""

from __future__ import annotations

import operator
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

from llmcli.errors import usage_error
from llmcli.generation.context import angle_length
from llmcli.generation.filters import BREAKERS, OPTIONS, Breakers, default_order, filter_chain
from llmcli.generation.loaded import LoadedModel, encode_prompt
from llmcli.generation.prompt_cache import PromptCache
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import Continuation, Finish, Proposer, Step, decode_steps
from llmcli.model.cache import KVCache
from llmcli.model.config import ModelConfig
from llmcli.model.positions import span
from llmcli.text.stream import TextStream
from llmcli.text.tokenizer import Tokenizer

TextFinish = Finish | Literal["stop_string", "interrupted"]


class GeneratedText:
    """The text that steps produce: ``text`` and ``tokens`` so far, and why it ended (``finish``).

    ``length`` is the number of tokens in the context, prompt included. ``valid`` is whether the text fits the grammar,
    or None without one. Of special tokens, the text has only those in ``shown``.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop: Sequence[str] = (), shown: Collection[int] = ()
    ) -> None:
        self.finish: TextFinish = "length"
        self.text = ""
        self.tokens = 0
        self.length = len(prompt_ids)
        self.valid: bool | None = None
        self._stream = TextStream(tokenizer, prompt_ids, stop, shown)

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the text; no step may follow then."""
        return self._stream.stopped is not None

    def add(self, step: Step) -> str:
        """Add a step and return the text that it completes; with the last step, also the text that was held back."""
        self.tokens += 1
        self.length = step.position + 1
        self.valid = None if step.ending is None else step.ending != "not yet"
        # The stop token is not part of the text, whether or not it is a special token.
        text = self._stream.feed(step.token) if step.finish != "stop_token" else ""
        if step.finish:
            self.finish = step.finish
            text += self._stream.finish()
        if self.stopped:
            self.finish = "stop_string"
        self.text += text
        return text

    def interrupt(self) -> str:
        """End the text early, and return the text that was held back until now."""
        self.finish = "interrupted"
        text = self._stream.finish()
        self.text += text
        return text


class Generation(GeneratedText):
    """One text as the model generates it: iterate once for (step, text) pairs, and read the attributes afterwards.

    ``prefill_seconds`` is the time to the first token, ``decode_seconds`` the time from there to the last.
    ``rope_length`` is the length that the rotary angles were computed for if they depend on it, otherwise 0.

    ``cache`` may hold a prefix of the prompt. A ``PromptCache`` is saved after the first token, so that a later
    interruption loses nothing; opening it counts as prefill time, saving it is not counted.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompt_ids: Sequence[int],
        *,
        sampler: Sampler,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        rolls: bool = False,
        cache: KVCache | PromptCache | None = None,
        proposer: Proposer | None = None,
        shown: Collection[int] = (),
    ) -> None:
        super().__init__(loaded.tokenizer, prompt_ids, stop, shown)
        if sampler.grammar is not None:
            self.valid = sampler.grammar.ending(prompt_ids) != "not yet"
        config = loaded.model.config
        self.sampler = sampler
        self.prompt_tokens = len(prompt_ids)
        self.rope_length = rope_length(config, len(prompt_ids), max_new_tokens)
        self.proposer = proposer
        self.prompt_cache = cache if isinstance(cache, PromptCache) else None
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0
        context = config.max_position_embeddings
        self._steps = decode_steps(
            loaded.model,
            Continuation(list(prompt_ids), sampler, max_new_tokens, context, loaded.stop_ids, rolls),
            cache=cache.cache if isinstance(cache, PromptCache) else cache,
            proposer=proposer,
        )

    def __iter__(self) -> Iterator[tuple[Step, str]]:
        began = time.perf_counter() - (self.prompt_cache.seconds if self.prompt_cache else 0.0)
        for step in self._steps:
            if not self.tokens:
                self.prefill_seconds = time.perf_counter() - began
            text = self.add(step)
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
        self._steps.close()  # truncates the cache now; garbage collection might do it much later
        return super().interrupt()


def rope_length(config: ModelConfig, prompt: int, max_new_tokens: int) -> int:
    """The length in tokens that the rotary angles of a text are computed for; 0 if they do not depend on it."""
    total = min(prompt + max_new_tokens, config.max_position_embeddings)
    length = span(config.rope, angle_length(config, prompt, max_new_tokens))
    return length if length == total else 0


def sampler_of(loaded: LoadedModel, seed: int, settings: Mapping[str, float] | None = None) -> Sampler:
    """The sampler with the given ``settings`` by filter name; the others come from generation_config.json."""
    breakers = Breakers(BREAKERS, loaded.tokenizer)
    chain = filter_chain(default_order(), {**loaded.defaults.sampling, **(settings or {})}, breakers=breakers)
    return Sampler([*loaded.vocabulary_filter(), *loaded.length_filter(), *chain], seed)


def generate(
    loaded: LoadedModel,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] | None = None,
    seed: int | None = None,
    **filters: float,
) -> Generation:
    """Continue ``prompt``, a text or token ids. Returns an iterator of (step, text) pairs.

    The text ends after ``max_new_tokens``, before a string of ``stop``, or at the model's own stop tokens. ``filters``
    are settings of the sampler: temperature, top_k, top_p, min_p, repetition_penalty and all others that ``llmcli
    generate`` has as options with a number. What is not given comes from the model's generation_config.json, or else
    has the default of ``llmcli generate``. The same ``seed`` gives the same text; without one the seed is random
    (``generation.sampler.seed``).

    The joined texts are the whole text. Afterwards the returned object has it too, and how generation went::

        generation = llmcli.generate(loaded, "Once upon a time", max_new_tokens=50, temperature=0.7, seed=1)
        for step, text in generation:
            print(text, end="", flush=True)
        print(generation.finish, generation.tokens, generation.text)

    Raises TypeError for an unknown filter, and LlmcliError for a value out of range or a prompt that does not fit the
    model's context (when iteration starts).
    """
    known = {name.replace("-", "_"): name for name in OPTIONS}
    for name in filters:
        if name not in known:
            raise TypeError(f"generate() got an unknown filter {name!r}; known: {', '.join(known)}")
    if not isinstance(loaded, LoadedModel):
        raise TypeError(f"generate() takes a model that llmcli.load() returned, not {type(loaded).__name__}")
    values = {known[name]: _number(name, value) for name, value in filters.items()}
    ids = encode_prompt(loaded, prompt) if isinstance(prompt, str) else loaded.readable(prompt)
    sampler = sampler_of(loaded, secrets.randbelow(2**32) if seed is None else operator.index(seed), values)
    own = loaded.defaults
    stops = (stop,) if isinstance(stop, str) else tuple(own.stop if stop is None else stop)
    if not all(isinstance(each, str) for each in stops):
        raise TypeError(f"stop must be a string, or several, not {stop!r}")
    if max_new_tokens is not None and operator.index(max_new_tokens) < 0:
        raise usage_error(f"max_new_tokens must be at least 0, not {max_new_tokens}")
    most = own.token_limit(None if max_new_tokens is None else operator.index(max_new_tokens))
    return Generation(loaded, ids, sampler=sampler, max_new_tokens=most, stop=stops)


def _number(name: str, value: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, not {value!r}") from None
