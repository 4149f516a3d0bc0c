"""Models that think before they answer: the tags around their thoughts, and the template's switch for thinking.

Both are found in the model's own files. A switch counts only if it changes what the template writes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llmcli.errors import LlmcliError, usage_error
from llmcli.text.chat_template import ChatTemplate, Message

if TYPE_CHECKING:
    from llmcli.text.tokenizer import Tokenizer

State = Literal["start", "thoughts", "answer"]


@dataclass(frozen=True)
class Tags:
    """The texts before and after thoughts, and what may precede an answer without thoughts."""

    open: str
    close: str
    skip: str = ""

    @property
    def ending(self) -> str:
        """What ends thoughts that are too long, written as models write it."""
        return self.close if self.skip else f"\n{self.close}\n\n"


# Sources: the templates of Qwen3, Magistral, Seed-OSS, Command A Reasoning, Kimi-VL and Gemma 4, and the format of
# gpt-oss (Harmony), which has channels.
KNOWN_TAGS = (
    Tags("<think>", "</think>"),
    Tags("<thinking>", "</thinking>"),
    Tags("[THINK]", "[/THINK]"),
    Tags("<seed:think>", "</seed:think>"),
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),
    Tags("◁think▷", "◁/think▷"),
    Tags("<|channel>thought", "<channel|>"),
    Tags(
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|channel|>final<|message|>",
    ),
)
SWITCHES = ("enable_thinking", "thinking")  # true or false
EFFORT = "reasoning_effort"  # a word; only some templates know "none"
MOST_EFFORT, NO_EFFORT = "high", "none"


@dataclass(frozen=True)
class Thinking:
    """How a model thinks: its ``tags``, if it does, and the template's variables that turn thinking on and off."""

    tags: Tags | None = None
    on: tuple[str, Any] | None = None
    off: tuple[str, Any] | None = None

    def state_after(self, prompt: str) -> State:
        """Where a reply is that begins after ``prompt``: the template may have begun or ended its thoughts."""
        end = prompt.rstrip()
        if self.tags is None or end.endswith(self.tags.close):
            return "answer"
        return "thoughts" if end.endswith(self.tags.open) else "start"

    def tag_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """The special tokens that the tags consist of, which a text shows only if it is asked to."""
        tags = "" if self.tags is None else self.tags.open + self.tags.close + self.tags.skip
        return frozenset(id for id, name in tokenizer.special_names.items() if name and name in tags)


def thinking_of(template: ChatTemplate, tokenizer: Tokenizer) -> Thinking:
    """Return how a model thinks, from its template and the names of its added tokens."""
    written = (tags for tags in KNOWN_TAGS if tags.open in template.source or tags.close in template.source)
    named = (tags for tags in KNOWN_TAGS if {tags.open, tags.close} <= tokenizer.added_ids.keys())
    tags = next(chain(written, named), None)
    for name in SWITCHES:
        if name in template.names and _differs(template, name, (True, False)):
            return Thinking(tags, (name, True), (name, False))
    if EFFORT in template.names and NO_EFFORT in template.compared_text.split("\0"):
        return Thinking(tags, (EFFORT, MOST_EFFORT), (EFFORT, NO_EFFORT))
    return Thinking(tags)


def switched(template: ChatTemplate, thinking: Thinking, *, on: bool) -> ChatTemplate:
    """Return the template with thinking on or off.

    A model that never thinks need not be told to stop. Raises LlmcliError if the template has no such switch.
    """
    value = thinking.on if on else thinking.off
    if value is not None:
        return template.with_arguments(dict([value]))
    if on:
        raise usage_error(f"{template.path}: the chat template has no switch for thinking", kind="no-thinking-switch")
    if thinking.tags is not None:
        raise usage_error(f"{template.path}: the chat template cannot turn thinking off", kind="always-thinking")
    return template


def _differs(template: ChatTemplate, name: str, values: tuple[Any, Any]) -> bool:
    """Whether the variable changes what the template writes for a short conversation."""
    try:
        first, second = (template.with_arguments({name: value}).render([Message("user", "?")]) for value in values)
    except LlmcliError:
        return False
    return first != second


class Piece(NamedTuple):
    """A piece of a reply: thoughts and answer, of which one is usually empty."""

    thoughts: str
    answer: str


class ThoughtSplitter:
    """Splits a streamed reply into thoughts and answer, without the tags and the line breaks beside them.

    Text that may be the beginning of a tag is held back. Only thoughts at the beginning of a reply count.
    """

    def __init__(self, tags: Tags | None, state: State) -> None:
        self.state: State = state if tags is not None else "answer"
        self._tags = tags
        self._held = ""
        self._fresh = state == "thoughts"  # line breaks are dropped until there is text

    def feed(self, text: str) -> Piece:
        """Return what can be told apart so far."""
        self._held += text
        thoughts = answer = ""
        for kind, part in self._parts():
            thoughts, answer = (thoughts + part, answer) if kind == "thoughts" else (thoughts, answer + part)
        return Piece(thoughts, answer)

    @property
    def in_tag(self) -> bool:
        """Whether the text so far may end within the closing tag."""
        close = "" if self._tags is None else self._tags.close
        return self.state == "thoughts" and any(self._held.endswith(close[:n]) for n in range(1, len(close)))

    def finish(self) -> Piece:
        """Return the text that is still held back, after the end of the reply."""
        held, self._held = self._held, ""
        return Piece(held.rstrip(), "") if self.state == "thoughts" else Piece("", held)

    def _parts(self) -> Iterator[tuple[State, str]]:
        """Yield the parts of the text held back, as far as they are certain."""
        if self.state == "start" and not self._started():
            return
        if self.state == "thoughts":
            assert self._tags is not None
            before, tag, after = self._held.partition(self._tags.close)
            if not tag:
                yield "thoughts", self._certain(self._tags.close)
                return
            yield "thoughts", before.lstrip("\n").rstrip() if self._fresh else before.rstrip()
            self.state, self._held, self._fresh = "answer", after, True
        if self._fresh:
            self._held = self._held.lstrip("\n")
        self._fresh = self._fresh and not self._held
        part, self._held = self._held, ""
        yield "answer", part

    def _started(self) -> bool:
        """Whether it is certain what the reply begins with; sets the state."""
        assert self._tags is not None
        text = self._held.lstrip()
        for tag, state in ((self._tags.open, "thoughts"), (self._tags.skip, "answer")):
            if tag and text.startswith(tag):
                self.state, self._held, self._fresh = state, text[len(tag) :], True  # type: ignore[assignment]
                return True
        if any(tag.startswith(text) for tag in (self._tags.open, self._tags.skip) if tag):
            return False
        self.state = "answer"
        return True

    def _certain(self, tag: str) -> str:
        """Take the thoughts that can be neither the beginning of the tag nor white space before it."""
        if self._fresh:
            self._held = self._held.lstrip("\n")
        cut = len(self._held) - max((n for n in range(1, len(tag)) if self._held.endswith(tag[:n])), default=0)
        cut = len(self._held[:cut].rstrip())
        part, self._held = self._held[:cut], self._held[cut:]
        self._fresh = self._fresh and not part
        return part


class SplitReply:
    """A reply that is generated token by token, as ``thoughts`` and ``answer``; ``thought_tokens`` counts the former's.

    Tokens beyond the ``budget`` are those of the closing tag.
    """

    def __init__(self, thinking: Thinking, state: State, budget: int | None = None) -> None:
        self.thoughts = self.answer = ""
        self.thought_tokens = 0
        self._splitter = ThoughtSplitter(thinking.tags, state)
        self._budget = sys.maxsize if budget is None else budget
        self._pending = 0  # tokens that may be those of the closing tag

    @property
    def state(self) -> State:
        """Whether the next token belongs to the thoughts or to the answer."""
        return self._splitter.state

    def add(self, text: str, *, ended: bool, counts: bool = True) -> Piece:
        """Add the text that a token completes; ``counts``: it is a token of the text, not one that ends it."""
        before = self.state
        piece = self._splitter.feed(text)
        if counts and before == self.state == "thoughts":
            self._pending += 1
            if not self._splitter.in_tag:
                self.thought_tokens = min(self.thought_tokens + self._pending, self._budget)
                self._pending = 0
        if ended:
            rest = self._splitter.finish()
            piece = Piece(piece.thoughts + rest.thoughts, piece.answer + rest.answer)
        self.thoughts += piece.thoughts
        self.answer += piece.answer
        return piece
