"""A conversation as token ids, in which the template's own special tokens are tokens and nobody else's are.

A text cannot forge a turn: "<|im_end|>" that somebody typed is text. In each message such a string is broken
by a character that occurs nowhere else; what is whole after the template has run is the template's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Protocol

from llmcli.errors import LlmcliError
from llmcli.text.chat_template import ChatTemplate, Message
from llmcli.text.guard import Guard
from llmcli.text.tokenizer import Tokenizer

PRIVATE = range(0xF0000, 0xFFFFE)  # characters that Unicode leaves without a meaning


@dataclass(frozen=True)
class Written:
    """A conversation as text. ``own`` are the places (start, end) of the template's own tokens in it.

    ``guarded`` where some other part of it might be read as such a token.
    """

    text: str
    own: tuple[tuple[int, int], ...] = ()
    guarded: bool = False

    def before(self, end: int) -> Written:
        """Its beginning."""
        return replace(self, text=self.text[:end], own=tuple(span for span in self.own if span[1] <= end))

    def after(self, start: int) -> Written:
        """What follows its first ``start`` characters."""
        own = tuple((a - start, b - start) for a, b in self.own if a >= start)
        return replace(self, text=self.text[start:], own=own)


class Form(Protocol):
    """How messages become a text, and the text ids."""

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end a reply."""

    def write(self, messages: Sequence[Message], *, reply: bool = True) -> Written:
        """The text of a conversation, with ``reply`` up to where the next reply begins."""

    def encode(self, written: Written) -> list[int]:
        """Its ids."""

    def places(self, messages: Sequence[Message]) -> list[int]:
        """Where each message's content ends in the text without a next reply's beginning."""


def plain(messages: Sequence[Message]) -> str:
    """The messages as one text, each turn of the user's on a new line."""
    text = ""
    for message in messages:
        breaks = message.role == "user" and text and message.content
        text += "\n" * bool(breaks) + message.content
    return text


class Plain:
    """No form at all: each turn stands on a new line of one text, as for a model that was never taught to chat."""

    ends: frozenset[int] = frozenset()

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def write(self, messages: Sequence[Message], *, reply: bool = True) -> Written:
        return Written(plain(messages))

    def encode(self, written: Written) -> list[int]:
        return self._tokenizer.encode(written.text)

    def places(self, messages: Sequence[Message]) -> list[int]:
        return [len(self.write(messages[: n + 1]).text) for n in range(len(messages))]


class Templated:
    """The form that a model was taught, its chat template."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._tokens = _control_tokens(template, tokenizer)
        # A reply may hold what the template itself takes it apart at, such as "</think>".
        sought = template.seeks
        special = {tokenizer.token_text(id) for id in tokenizer.special_ids}
        self._in_reply = frozenset(token for token in self._tokens if token in special or token not in sought)
        self._guard: Guard | None = None

    @cached_property
    def ends(self) -> frozenset[int]:
        """The special token that the template writes behind a reply, if it writes one."""
        marker = self._free([])
        try:
            written = self.write([Message("user", "?"), Message("assistant", marker)], reply=False)
        except LlmcliError:
            return frozenset()
        rest = written.after(written.text.find(marker) + 1)
        start, end = next(iter(rest.own if marker in written.text else ()), (0, 0))
        id = self._tokenizer.fast.token_to_id(rest.text[start:end]) if not rest.text[:start].strip() else None
        return frozenset([id] if id in self._tokenizer.special_ids else [])

    def doubled(self, messages: Sequence[Message]) -> str | None:
        """The special token with which the template begins a conversation twice, if it does."""
        first, second, *_ = [*self.encode(self.write(messages)), -1, -2]
        return self._tokenizer.token_text(first) if first == second and first in self._tokenizer.special_ids else None

    def write(self, messages: Sequence[Message], *, reply: bool = True) -> Written:
        mark = self._free([message.content for message in messages])
        broken = [replace(message, content=self._broken(message, mark)) for message in messages]
        guarded = any(
            one.content != message.content or self._suspect(message, mark)
            for one, message in zip(broken, messages, strict=True)
        )
        rendered = self._template.render(broken, add_generation_prompt=reply)
        text, own, place = "", [], 0
        for match in _pattern(self._tokens, mark).finditer(rendered):
            text += rendered[place : match.start()].replace(mark, "")
            own.append((len(text), len(text) + len(match[0])))
            text, place = text + match[0], match.end()
        return Written(text + rendered[place:].replace(mark, ""), tuple(own), guarded)

    def encode(self, written: Written) -> list[int]:
        if not written.guarded:
            return self._tokenizer.encode(written.text, parse_special=True, surrounded=False)
        if self._guard is None or self._guard.mark in written.text:
            known = self._tokenizer.fast.to_str(pretty=False)
            self._guard = Guard(self._tokenizer.fast, self._tokens, self._free([written.text, known]))
        text, place = "", 0
        for start, end in written.own:
            text += written.text[place:start] + self._guard.marked(written.text[start:end])
            place = end
        return self._guard.encode(text + written.text[place:])

    def places(self, messages: Sequence[Message]) -> list[int]:
        """Likewise; empty if the template leaves one out."""
        mark = self._free([message.content for message in messages])
        marked = []
        for message in messages:  # before its last character, for templates trim the ends
            cut = max(len(message.content.rstrip()) - 1, 0)
            marked.append(replace(message, content=message.content[:cut] + mark + message.content[cut:]))
        *pieces, _ = self.write(marked, reply=False).text.split(mark)
        if len(pieces) != len(messages):
            return []
        starts = accumulate(map(len, pieces))
        return [start + bool(m.content.strip()) for start, m in zip(starts, messages, strict=True)]

    def _broken(self, message: Message, mark: str) -> str:
        """The message's text with a mark in each string that could pass for a token, or complete one."""
        tokens = self._in_reply if message.role == "assistant" else self._tokens
        text = _pattern(tokens, mark).sub(lambda match: match[0][0] + mark + match[0][1:], message.content)
        beginnings, ends = _edges(tokens)
        longest = max(map(len, beginnings), default=0)
        before = any(text[:n] in ends for n in range(1, longest + 1))
        behind = any(text[-n:] in beginnings for n in range(1, longest + 1))
        behind = behind or (text.strip() != "" and any(text in token for token in tokens))
        return mark * before + text + mark * behind

    def _suspect(self, message: Message, mark: str) -> bool:
        """Whether the tokenizer's normaliser makes of the message what could pass for a token, as of "＜/s＞"."""
        normal = replace(message, content=self._tokenizer.normalised(message.content))
        return self._broken(normal, mark) != normal.content

    def _free(self, texts: Sequence[str]) -> str:
        """A character that occurs in none of the texts, nor in the template."""
        used = set(self._template.source).union(*texts)
        return next(char for char in map(chr, PRIVATE) if char not in used)


def _control_tokens(template: ChatTemplate, tokenizer: Tokenizer) -> frozenset[str]:
    """The added tokens that no message may hold as tokens: all special ones, and those that the template writes.

    Not those of blanks alone: a template's line ends are ordinary text.
    """
    try:
        probe = template.render([Message(role, "?") for role in ("user", "assistant", "user")])
    except LlmcliError:
        probe = ""
    outputs = f"{template.outputs}\0{probe}"
    added = tokenizer.fast.get_added_tokens_decoder().values()
    return frozenset(
        token.content for token in added if token.special or (token.content.strip() and token.content in outputs)
    )


@lru_cache
def _edges(tokens: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """What tokens begin with and what they end with, where that is not the whole token nor blank."""
    cuts = [(token[:n], token[n:]) for token in tokens for n in range(1, len(token))]
    return frozenset(a for a, _ in cuts if a.strip()), frozenset(b for _, b in cuts if b.strip())


@lru_cache
def _pattern(tokens: frozenset[str], mark: str) -> re.Pattern[str]:
    """Any of the tokens, the longest that fits. One of a single character cannot be broken: the mark follows it."""
    ordered = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(re.escape(t) + (f"(?!{mark})" if len(t) == 1 else "") for t in ordered) or "(?!)")
