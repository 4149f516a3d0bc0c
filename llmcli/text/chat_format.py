"""Conversations as token ids, where only the chat template itself can write control tokens.

No message can forge a turn: "<|im_end|>" typed by a user stays text. Before rendering, every such string in a message
is split by a character that occurs nowhere else, so whatever is intact after rendering comes from the template.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Protocol

from llmcli.errors import LlmcliError, usage_error
from llmcli.text.chat_template import ChatTemplate, Message
from llmcli.text.marked_tokenizer import MarkedTokenizer
from llmcli.text.tokenizer import Tokenizer

PRIVATE_USE = range(0xF0000, 0xFFFFE)  # characters to which Unicode assigns no meaning


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as text. ``control_spans`` are the (start, end) offsets of the template's own control tokens.

    ``needs_marks``: some other part of the text could be taken for a control token.
    """

    text: str
    control_spans: tuple[tuple[int, int], ...] = ()
    needs_marks: bool = False

    def before(self, end: int) -> RenderedChat:
        """Return the first ``end`` characters."""
        spans = tuple(span for span in self.control_spans if span[1] <= end)
        return replace(self, text=self.text[:end], control_spans=spans)

    def after(self, start: int) -> RenderedChat:
        """Return everything except the first ``start`` characters."""
        spans = tuple((a - start, b - start) for a, b in self.control_spans if a >= start)
        return replace(self, text=self.text[start:], control_spans=spans)


class ChatFormat(Protocol):
    """How messages become text, and the text token ids."""

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a reply."""

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> RenderedChat:
        """Return the text of a conversation, by default up to where the next reply begins."""

    def encode(self, rendered: RenderedChat) -> list[int]:
        """Return the token ids of a rendered conversation."""

    def message_ends(self, messages: Sequence[Message]) -> list[int]:
        """Return the offset at which each message's content ends in ``render(…, add_generation_prompt=False)``.

        Empty if the template drops a message.
        """


def join_messages(messages: Sequence[Message]) -> str:
    """Return the messages as one text in which each user message starts a new line."""
    text = ""
    for message in messages:
        breaks = message.role == "user" and text and message.content
        text += "\n" * bool(breaks) + message.content
    return text


class PlainFormat:
    """The format for a base model, which was not trained to chat: one text, each user message on a new line."""

    end_ids: frozenset[int] = frozenset()

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> RenderedChat:
        return RenderedChat(join_messages(messages))

    def encode(self, rendered: RenderedChat) -> list[int]:
        return self._tokenizer.encode(rendered.text)

    def message_ends(self, messages: Sequence[Message]) -> list[int]:
        return [len(self.render(messages[: n + 1]).text) for n in range(len(messages))]


class TemplateFormat:
    """The format of a model's chat template."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self.template = template
        self._tokenizer = tokenizer
        self._control_tokens = _control_tokens(template, tokenizer)
        # A reply may contain strings at which the template itself splits it, such as "</think>".
        compared = template.compared_text
        special = set(tokenizer.special_names.values())
        self._control_in_reply = frozenset(
            token for token in self._control_tokens if token in special or token not in compared
        )
        self._marked_tokenizer: MarkedTokenizer | None = None

    @property
    def bos(self) -> str:
        """The text of the BOS token, if the template has one by name."""
        return self.template.bos

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The special token that the template writes after a reply, if any."""
        marker = self._unused_character([])
        try:
            rendered = self.render([Message("user", "?"), Message("assistant", marker)], add_generation_prompt=False)
        except LlmcliError:
            return frozenset()
        rest = rendered.after(rendered.text.find(marker) + 1)
        start, end = next(iter(rest.control_spans if marker in rendered.text else ()), (0, 0))
        id = self._tokenizer.fast.token_to_id(rest.text[start:end]) if not rest.text[:start].strip() else None
        return frozenset([id] if id in self._tokenizer.special_ids else [])

    def doubled_token(self, messages: Sequence[Message]) -> str | None:
        """Return the special token with which the template begins a conversation twice, if it does."""
        first, second, *_ = [*self.encode(self.render(messages)), -1, -2]
        return self._tokenizer.special_names.get(first) if first == second else None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> RenderedChat:
        mark = self._unused_character([message.content + message.reasoning for message in messages])
        split = [
            replace(
                message,
                content=self._split_control(message.content, message.role, mark),
                reasoning=self._split_control(message.reasoning, message.role, mark),
            )
            for message in messages
        ]
        needs_marks = any(
            changed != message
            or any(self._suspicious(text, message.role, mark) for text in (message.content, message.reasoning))
            for changed, message in zip(split, messages, strict=True)
        )
        rendered = self.template.render(split, add_generation_prompt=add_generation_prompt)
        text, spans, position = "", [], 0
        for match in _pattern(self._control_tokens, mark).finditer(rendered):
            text += rendered[position : match.start()].replace(mark, "")
            spans.append((len(text), len(text) + len(match[0])))
            text, position = text + match[0], match.end()
        return RenderedChat(text + rendered[position:].replace(mark, ""), tuple(spans), needs_marks)

    def encode(self, rendered: RenderedChat) -> list[int]:
        return [id for id, _, _ in self.encode_spans(rendered)]

    def encode_spans(self, rendered: RenderedChat) -> list[tuple[int, int, int]]:
        """Return the token ids of a rendered conversation, each with its (start, end) offsets in the text."""
        if not rendered.needs_marks:
            found = self._tokenizer.encoding(rendered.text, parse_special=True, add_special=False)
            return [(id, start, end) for id, (start, end) in zip(found.ids, found.offsets, strict=True)]
        if self._marked_tokenizer is None or self._marked_tokenizer.mark in rendered.text:
            known = self._tokenizer.fast.to_str(pretty=False)
            mark = self._unused_character([rendered.text, known])
            self._marked_tokenizer = MarkedTokenizer(self._tokenizer.fast, self._control_tokens, mark)
        text, position = "", 0
        for start, end in rendered.control_spans:
            text += rendered.text[position:start] + self._marked_tokenizer.marked(rendered.text[start:end])
            position = end
        return self._marked_tokenizer.encode_spans(text + rendered.text[position:])

    def message_ends(self, messages: Sequence[Message]) -> list[int]:
        mark = self._unused_character([message.content for message in messages])
        marked = []
        for message in messages:  # before the last character, because templates strip whitespace
            cut = max(len(message.content.rstrip()) - 1, 0)
            marked.append(replace(message, content=message.content[:cut] + mark + message.content[cut:]))
        *parts, _ = self.render(marked, add_generation_prompt=False).text.split(mark)
        if len(parts) != len(messages):
            return []
        offsets = accumulate(map(len, parts))
        return [offset + bool(m.content.strip()) for offset, m in zip(offsets, messages, strict=True)]

    def lookalikes(self, message: Message) -> list[str]:
        """Return what looks like a control token in a message, or becomes one when the tokenizer normalizes it.

        It is encoded as ordinary text.
        """
        pattern = _pattern(self._tokens_in(message.role), self._unused_character([message.content]))
        return pattern.findall(message.content) or pattern.findall(self._tokenizer.normalize(message.content))

    def _tokens_in(self, role: str) -> frozenset[str]:
        """The control tokens that a message of ``role`` must not contain."""
        return self._control_in_reply if role == "assistant" else self._control_tokens

    def _split_control(self, content: str, role: str, mark: str) -> str:
        """The text with a mark inside each string that is a control token or could complete one."""
        tokens = self._tokens_in(role)
        text = _pattern(tokens, mark).sub(lambda match: match[0][0] + mark + match[0][1:], content)
        prefixes, suffixes = _partial_tokens(tokens)
        longest = max(map(len, prefixes), default=0)
        before = any(text[:n] in suffixes for n in range(1, longest + 1))
        after = any(text[-n:] in prefixes for n in range(1, longest + 1))
        after = after or (text.strip() != "" and any(text in token for token in tokens))
        return mark * before + text + mark * after

    def _suspicious(self, text: str, role: str, mark: str) -> bool:
        """Whether the tokenizer's normalizer turns a part of the text into a control token, such as "＜/s＞"."""
        normal = self._tokenizer.normalize(text) if text else ""
        return self._split_control(normal, role, mark) != normal

    def _unused_character(self, texts: Sequence[str]) -> str:
        found = next(self.unused_characters(texts), None)
        if found is None:
            raise usage_error("the conversation has every character that is free for private use", "leave one out")
        return found

    def unused_characters(self, texts: Sequence[str]) -> Iterator[str]:
        """Yield characters that occur neither in ``texts`` nor in the template."""
        used = set(self.template.source).union(*texts)
        return (char for char in map(chr, PRIVATE_USE) if char not in used)


def _control_tokens(template: ChatTemplate, tokenizer: Tokenizer) -> frozenset[str]:
    """The added tokens that no message may contain as tokens: all special ones and all that the template writes.

    Tokens of whitespace only are excluded: a template's line breaks are ordinary text.
    """
    try:
        probe = template.render([Message(role, "?") for role in ("user", "assistant", "user")])
    except LlmcliError:
        probe = ""
    outputs = f"{template.output_text}\0{probe}"
    added = tokenizer.fast.get_added_tokens_decoder().values()
    return frozenset(
        token.content for token in added if token.special or (token.content.strip() and token.content in outputs)
    )


@lru_cache
def _partial_tokens(tokens: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """All proper prefixes and all proper suffixes of the tokens, except those of whitespace only."""
    cuts = [(token[:n], token[n:]) for token in tokens for n in range(1, len(token))]
    return frozenset(a for a, _ in cuts if a.strip()), frozenset(b for _, b in cuts if b.strip())


@lru_cache
def _pattern(tokens: frozenset[str], mark: str) -> re.Pattern[str]:
    """Match any of the tokens, the longest first. A single character cannot be split: it is followed by the mark."""
    ordered = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(re.escape(t) + (f"(?!{mark})" if len(t) == 1 else "") for t in ordered) or "(?!)")
