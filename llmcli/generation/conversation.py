"""A conversation with a model: its messages, and the KV cache that is kept from turn to turn.

A turn reads only what is new, whatever was taken back or changed before: the cache keeps the longest beginning
that its ids share with those of the conversation as it stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from llmcli.errors import LlmcliError, usage_error
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Choice, Sampler
from llmcli.generation.steps import Step, forget_stale, next_logits, shared
from llmcli.generation.text import Generation
from llmcli.text.chat_template import Message
from llmcli.text.turns import Form

Messages = tuple[Message, ...]


@dataclass(frozen=True)
class Kept:
    """A conversation up to a reply that was written here: its text, and the very ids that were read and written."""

    text: str
    ids: tuple[int, ...]


class Reply:
    """A reply as it is written: iterate to get (step, text) pairs, as of ``generation``, which tells how it went."""

    def __init__(
        self, messages: Messages, generation: Generation, sampler: Sampler, prompt: Sequence[int], ids: list[int]
    ) -> None:
        self.messages = messages  # to which it is the reply
        self.generation = generation
        self.sampler = sampler
        self.prompt = tuple(prompt)
        self.choices: list[Choice] = []
        self._ids = ids
        self._stopped = False

    def __iter__(self) -> Iterator[tuple[Step, str]]:
        for step, text in self.generation:
            self._ids.append(step.token)
            self.choices.append(step.choice)
            self._stopped = step.finish == "stop_token"
            yield step, text

    @property
    def ids(self) -> list[int]:
        """What was written, without the token that ended it."""
        chosen = [choice.id for choice in self.choices]
        return chosen[:-1] if self._stopped else chosen

    @property
    def message(self) -> Message:
        return Message("assistant", self.generation.text)


class Conversation:
    """``messages`` are what was said; change them at will. ``last`` is the reply that was kept last."""

    def __init__(self, loaded: LoadedModel, form: Form) -> None:
        stops = (*loaded.stop_ids, *form.ends)
        self.loaded = replace(loaded, defaults=replace(loaded.defaults, stop_ids=stops))
        self.form = form
        self.messages: Messages = ()
        self.last: Reply | None = None
        self._cache = loaded.model.new_cache()
        self._read: list[int] = []  # the cache holds a beginning of these
        self._kept: dict[Messages, Kept] = {}

    @property
    def name(self) -> str:
        """The model's."""
        return self.loaded.name

    def check(self, messages: Messages) -> None:
        """Raise where the template refuses ``messages``."""
        self.form.write(messages)

    @property
    def context(self) -> int:
        """How many tokens the model can read and write in all."""
        return self.loaded.model.config.max_position_embeddings

    def answer(self, messages: Messages, sampler: Sampler, max_new_tokens: int) -> Reply:
        """Begin the reply to ``messages``; the conversation is theirs only when it is given to ``keep``.

        Errors: the template refuses them, or they do not fit into the context.
        """
        ids = self.ids(messages)
        if len(ids) >= self.context:
            raise LlmcliError(
                f"the conversation would be {len(ids)} tokens long, but the model's context is {self.context}",
                "say it shorter, take turns back with /undo, or start a new chat",
            )
        self._share(ids)
        generation = Generation(self.loaded, ids, sampler=sampler, max_new_tokens=max_new_tokens, cache=self._cache)
        return Reply(messages, generation, sampler, ids, self._read)

    def keep(self, reply: Reply) -> None:
        """Go on from a reply, or from as much of it as was written."""
        self.messages = (*reply.messages, reply.message)
        self.last = reply
        text = self.form.write(reply.messages).text + reply.message.content
        self._kept[self.messages] = Kept(text, (*reply.prompt, *reply.ids))

    def ids(self, messages: Messages) -> list[int]:
        """Ids of ``messages`` up to where the next reply begins.

        Those of a reply written here are the model's own, not what its text would be encoded to, where
        the template goes on behind it with a special token of its own.
        """
        written = self.form.write(messages)
        kept = next((self._kept[m] for n in range(len(messages), 0, -1) if (m := messages[:n]) in self._kept), None)
        if kept is not None and written.text.startswith(kept.text):
            end = len(kept.text)
            if any(start == end for start, _ in written.own):
                return self.loaded.readable([*kept.ids, *self.form.encode(written.after(end))])
        return self.loaded.readable(self.form.encode(written))

    def sizes(self) -> list[int]:
        """Tokens of each message, with what the template puts before it; the last are of what it puts behind all."""
        written = self.form.write(self.messages, reply=False)
        places = [0, *self.form.places(self.messages), len(written.text)]
        counts = [len(self.form.encode(written.before(place))) if place else 0 for place in places]
        return [after - before for before, after in pairwise(counts)]

    def step(self, index: int) -> tuple[Step, list[int]]:
        """A step of the last reply once more, and the ids before it. Errors: there is none."""
        if self.last is None or self.messages != (*self.last.messages, self.last.message):
            raise usage_error("there is no reply of this session to explain", "say something first")
        reply, count = self.last, len(self.last.choices)
        if not -count <= index < count:
            raise usage_error(f"the last reply has no token {index}", f"they are numbered from 0 to {count - 1}")
        index %= count
        choice = reply.choices[index]
        context = [*reply.prompt, *(choice.id for choice in reply.choices[:index])]
        self._share(context)
        forget_stale(self.loaded.model, len(context), self._cache)
        logits = next_logits(self.loaded.model, context[self._cache.length :], self._cache)
        return Step(index, len(context), choice.id, logits, choice, None, None), context

    def _share(self, ids: Sequence[int]) -> None:
        """Keep of the cache what it shares with ``ids``, less the last of them, whose logits are wanted."""
        self._cache.truncate(shared(self._read[: self._cache.length], ids[:-1]))
        self._read = list(ids)
