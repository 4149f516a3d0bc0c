"""A conversation with a model: its messages, and a KV cache that is kept from turn to turn.

A turn reads only new tokens, even after messages were removed or changed: the cache keeps the longest prefix that its
ids share with those of the current conversation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from llmcli.errors import LlmcliError, usage_error
from llmcli.generation.context import check_text
from llmcli.generation.generate import Generation
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.reading import clear_if_stale, common_prefix, native_of, next_logits
from llmcli.generation.sampling import Choice, Sampler
from llmcli.generation.steps import Step
from llmcli.generation.thinking import think_budget_of
from llmcli.text.chat_format import ChatFormat
from llmcli.text.chat_template import Message
from llmcli.text.thinking import Piece, SplitReply, Thinking

Messages = tuple[Message, ...]


@dataclass(frozen=True)
class KnownIds:
    """The text of a conversation up to a generated reply, and the ids that were actually read and generated."""

    text: str
    ids: tuple[int, ...]


class Reply:
    """A reply while it is generated: iterate for its steps, each with the thoughts and the answer that it completes.

    ``messages`` are those that it replies to, ``prompt`` their ids, and ``choices`` how each token was chosen so far.
    """

    def __init__(
        self,
        messages: Messages,
        generation: Generation,
        sampler: Sampler,
        prompt: Sequence[int],
        read: list[int],
        split: SplitReply,
    ) -> None:
        self.messages = messages
        self.generation = generation
        self.sampler = sampler
        self.prompt = tuple(prompt)
        self.choices: list[Choice] = []
        self._read = read
        self._stopped = False
        self._split = split

    def __iter__(self) -> Iterator[tuple[Step, Piece]]:
        for step, text in self.generation:
            self._read.append(step.token)
            self.choices.append(step.choice)
            self._stopped = step.finish == "stop_token"
            ended = step.finish is not None or self.generation.stopped
            yield step, self._split.add(text, ended=ended, counts=not self._stopped)

    def interrupt(self) -> Piece:
        """End the reply early, and return what was held back until now."""
        return self._split.add(self.generation.interrupt(), ended=True, counts=False)

    @property
    def thought_tokens(self) -> int:
        """The number of tokens of its thoughts."""
        return self._split.thought_tokens

    @property
    def ids(self) -> list[int]:
        """The generated ids, without the stop token."""
        chosen = [choice.id for choice in self.choices]
        return chosen[:-1] if self._stopped else chosen

    @property
    def message(self) -> Message:
        return Message("assistant", self._split.answer, self._split.thoughts)


def for_chat(loaded: LoadedModel, form: ChatFormat, thinking: Thinking) -> LoadedModel:
    """Return the model with the stop tokens of a chat: its own and those that the template writes after a reply."""
    tags = thinking.tag_ids(loaded.tokenizer)
    stops = {*loaded.named_stop_ids, *form.end_ids} - tags or loaded.stop_ids
    return replace(loaded, defaults=replace(loaded.defaults, stop_ids=tuple(stops)))


class Conversation:
    """``messages`` can be changed freely between replies. ``last`` is the reply that was kept last.

    ``thinking`` says how the model thinks. ``form``, how messages become text, can be replaced.
    """

    def __init__(self, loaded: LoadedModel, form: ChatFormat, thinking: Thinking | None = None) -> None:
        self.thinking = thinking or Thinking()
        self.loaded = for_chat(loaded, form, self.thinking)
        self.form = form
        self.messages: Messages = ()
        self.last: Reply | None = None
        self._cache = loaded.model.new_cache()
        self._read: list[int] = []  # the cache holds a prefix of these
        self._known: dict[Messages, KnownIds] = {}

    @property
    def name(self) -> str:
        """The model's name."""
        return self.loaded.name

    def check(self, messages: Messages) -> None:
        """Raise LlmcliError if the template rejects ``messages``."""
        self.form.render(messages)

    @property
    def context(self) -> int:
        """The size of the model's context in tokens."""
        return self.loaded.model.config.max_position_embeddings

    def answer(
        self, messages: Messages, sampler: Sampler, max_new_tokens: int, think_budget: int | None = None
    ) -> Reply:
        """Begin the reply to ``messages``. The conversation changes only when the reply is passed to ``keep``.

        Thoughts end after ``think_budget`` tokens, if it is given. Raises LlmcliError if the template rejects the
        messages or they do not fit into the context, or if the model has no tags for thoughts but there is a budget.
        """
        ids, generated = self._encoded(messages)
        if len(ids) >= self.context:
            raise LlmcliError(
                f"the conversation would have {len(ids)} tokens, but the model's context holds {self.context}",
                kind="conversation-too-long",
            )
        self._keep_prefix(ids)
        last = generated - 1  # its token is read by itself, as if the reply had gone on
        if self._cache.length == last < len(ids) - 1 and native_of(self.loaded.model) is not None:
            next_logits(self.loaded.model, ids[last:generated], self._cache)
        state = self.thinking.state_after(self.form.render(messages).text)
        if think_budget is not None:
            budget = think_budget_of(self.loaded.tokenizer, self.thinking, think_budget, state, len(ids))
            sampler = Sampler([budget, *sampler.filters], sampler.seed)
        generation = Generation(
            self.loaded,
            ids,
            sampler=sampler,
            max_new_tokens=max_new_tokens,
            stop=self.loaded.defaults.stop,
            cache=self._cache,
            shown=self.thinking.tag_ids(self.loaded.tokenizer),
        )
        split = SplitReply(self.thinking, state, think_budget)
        return Reply(messages, generation, sampler, ids, self._read, split)

    def keep(self, reply: Reply) -> None:
        """Add a reply to the conversation, or as much of it as was generated."""
        self.messages = (*reply.messages, reply.message)
        self.last = reply
        text = self.form.render(reply.messages).text + reply.generation.text
        self._known[self.messages] = KnownIds(text, (*reply.prompt, *reply.ids))

    def ids(self, messages: Messages) -> list[int]:
        """The ids of ``messages`` up to the beginning of the next reply.

        A generated reply keeps the ids that the model chose, which may differ from those that its text encodes to,
        provided that the template continues after it with one of its own special tokens.
        """
        return self._encoded(messages)[0]

    def _encoded(self, messages: Messages) -> tuple[list[int], int]:
        """The ids of ``messages``, and how many of them end with the last reply that was generated; 0 without one."""
        written = self.form.render(messages)
        check_text(
            written.text,
            lambda start: self.form.encode(written.before(len(start))),
            self.context,
            "the conversation",
            "conversation-too-long",
        )
        prefixes = (messages[:count] for count in range(len(messages), 0, -1))
        known = next((self._known[prefix] for prefix in prefixes if prefix in self._known), None)
        if known is None or not written.text.startswith(known.text):
            return self.loaded.readable(self.form.encode(written)), 0
        end = len(known.text)
        if any(start == end for start, _ in written.control_spans):
            ids = [*known.ids, *self.form.encode(written.after(end))]
        else:
            ids = self.form.encode(written)
        same = tuple(ids[: len(known.ids)]) == known.ids
        return self.loaded.readable(ids), len(known.ids) if same else 0

    def sizes(self) -> list[int]:
        """The number of tokens of each message, including what the template puts before it.

        The last number counts what the template puts after all messages.
        """
        written = self.form.render(self.messages, add_generation_prompt=False)
        places = [0, *self.form.message_ends(self.messages), len(written.text)]
        counts = [len(self.form.encode(written.before(place))) if place else 0 for place in places]
        return [after - before for before, after in pairwise(counts)]

    def step(self, index: int) -> tuple[Step, list[int]]:
        """Recompute step ``index`` of the last reply; returns it with the ids of the context before it.

        Raises LlmcliError if there is no such step.
        """
        if self.last is None or self.messages != (*self.last.messages, self.last.message):
            raise usage_error("this session has no reply to explain", "send a message first")
        reply, count = self.last, len(self.last.choices)
        if not -count <= index < count:
            raise usage_error(f"the last reply has no token {index}", f"its tokens are numbered from 0 to {count - 1}")
        index %= count
        choice = reply.choices[index]
        context = [*reply.prompt, *(choice.id for choice in reply.choices[:index])]
        self._keep_prefix(context)
        clear_if_stale(self.loaded.model, len(context), self._cache)
        logits = next_logits(self.loaded.model, context[self._cache.length :], self._cache)
        return Step(index, len(context), choice.id, logits, choice, None, None), context

    def _keep_prefix(self, ids: Sequence[int]) -> None:
        """Truncate the cache to its common prefix with ``ids``, except the last id, whose logits are needed."""
        self._cache.truncate(common_prefix(self._read[: self._cache.length], ids[:-1]))
        self._read = list(ids)
