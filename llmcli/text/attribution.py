"""Which part of a rendered conversation comes from which message, and which from the template.

Each message's text is rendered again between two marks: characters that occur nowhere else. If the marks change
anything else in the output, the text is left unattributed rather than guessed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llmcli.errors import LlmcliError
from llmcli.text.chat_format import RenderedChat, TemplateFormat
from llmcli.text.chat_template import Message

Kind = Literal["content", "thoughts", "template"]
FIELDS: tuple[tuple[Kind, str], ...] = (("thoughts", "reasoning"), ("content", "content"))
# Where the marks are: around the whole text, within the white space at its ends, which templates strip, or within its
# first and last character, at which templates look.
PLACES = ("outside", "stripped", "inside")
MOST_REPLIES = 1000  # only the tokens of the first ones are found: each needs characters as marks


@dataclass(frozen=True)
class Part:
    """The characters from ``start`` to ``end`` of a rendered conversation.

    ``message`` is the index of the message that they belong to, the number of messages for the beginning of the next
    reply, and None for what belongs to no message or cannot be attributed.
    """

    start: int
    end: int
    message: int | None
    kind: Kind


class Attribution:
    """The parts of a conversation; ``add_generation_prompt`` as for ``render``."""

    def __init__(self, form: TemplateFormat, messages: Sequence[Message], *, add_generation_prompt: bool) -> None:
        self._form = form
        self._messages = messages
        self._prompts = add_generation_prompt
        self.rendered = form.render(messages, add_generation_prompt=add_generation_prompt)

    def parts(self) -> list[Part]:
        """Return the parts in order and without gaps.

        What the template writes after a message belongs to it if the template writes the same when nothing follows. A
        message whose text the template changes, repeats or drops has no part of its own.
        """
        text, messages, parts = self.rendered.text, self._messages, list[Part]()
        position, last = 0, -1  # the end of the text so far, and the message that it belongs to
        fields = _fields(self._form, messages, self.rendered, range(len(messages)), self._prompts)
        for field in [*fields, Part(len(text), len(text), len(messages), "template")]:
            assert field.message is not None
            parts += self._between(position, field.start, last, field.message)
            parts.append(field)
            position, last = field.end, field.message
        return [part for part in parts if part.end > part.start]

    def _between(self, start: int, end: int, before: int, after: int) -> Iterator[Part]:
        """Yield the parts of the template's text between two messages, the first of which may be -1: none."""
        gap, own = self.rendered.text[start:end], None
        if before == after:
            own = ""
        elif before == -1:
            own = self._preamble(gap) if after == 0 < len(self._messages) else None
        elif after == before + 1:
            own = _after(self._form, self._messages[:after])
        if own is None or not gap.startswith(own):
            yield Part(start, end, None, "template")
            return
        yield Part(start, start + len(own), None if before == -1 else before, "template")
        yield Part(start + len(own), end, after, "template")

    def _preamble(self, head: str) -> str | None:
        """What the template writes before the first message: ``head`` without what it writes before a later one.

        Before a system message, of which there is no later one, only a BOS token.
        """
        first = self._messages[0]
        if first.role == "system":
            bos = self._form.bos if head.startswith(self._form.bos) else ""
            return None if _after(self._form, [first]) is None else bos
        other = Message("assistant" if first.role == "user" else "user", "?")
        again = [first, other, first]
        footer = _after(self._form, again[:2])
        try:
            rendered = self._form.render(again)
        except LlmcliError:
            return None
        found = _fields(self._form, again, rendered, (1, 2), True)
        if footer is None or len(found) != 2:
            return None
        gap = rendered.text[found[0].end : found[1].start]
        own = gap.removeprefix(footer)
        return head.removesuffix(own) if gap.startswith(footer) and head.endswith(own) else None


def reply_tokens(
    form: TemplateFormat,
    messages: Sequence[Message],
    rendered: RenderedChat,
    encoded: Sequence[tuple[int, int, int]],
) -> list[tuple[int, int]]:
    """Return the range of indices in ``encoded`` (from ``form.encode_spans``) of each reply's tokens, end excluded.

    A token that also contains template text is not included. A reply whose text the template changes has no range.
    """
    which = [n for n, message in enumerate(messages) if message.role == "assistant"][:MOST_REPLIES]
    fields = (_marked(form, messages, rendered, which, True) or []) if which else []
    starts, ends = [start for _, start, _ in encoded], [end for _, _, end in encoded]
    found = []
    for n in which:
        own = [field for field in fields if field.message == n]
        if own:  # between thoughts and content is what the model wrote, too
            first, end = bisect_left(starts, own[0].start), bisect_right(ends, own[-1].end)
            found += [(first, end)] if first < end else []
    return found


def _after(form: TemplateFormat, messages: Sequence[Message]) -> str | None:
    """What the template writes after the last message when nothing follows; None if that cannot be found."""
    try:
        rendered = form.render(messages, add_generation_prompt=False)
    except LlmcliError:
        return None
    found = _fields(form, messages, rendered, (len(messages) - 1,), False)
    return rendered.text[found[-1].end :] if found else None


def _fields(
    form: TemplateFormat, messages: Sequence[Message], rendered: RenderedChat, which: Sequence[int], prompts: bool
) -> list[Part]:
    """The texts of the messages ``which``, by index, that are once and unchanged in ``rendered``, in its order."""
    found = _marked(form, messages, rendered, which, prompts)
    if found is not None:
        return found
    if len(which) == 1:
        return []
    alone = [field for n in which for field in _fields(form, messages, rendered, (n,), prompts)]
    return sorted(alone, key=lambda field: (field.start, field.end))


def _marked(
    form: TemplateFormat, messages: Sequence[Message], rendered: RenderedChat, which: Sequence[int], prompts: bool
) -> list[Part] | None:
    """What ``_fields`` returns, with marks for all of ``which`` together; None if they change the text at any place."""
    tries = (_marked_at(place, form, messages, rendered, which, prompts) for place in PLACES)
    return next((found for found in tries if found is not None), None)


def _marked_at(
    place: str,
    form: TemplateFormat,
    messages: Sequence[Message],
    rendered: RenderedChat,
    which: Sequence[int],
    prompts: bool,
) -> list[Part] | None:
    """The texts, found by marks; None if marks at this ``place`` change the text, or the template rejects them."""
    free = form.unused_characters([rendered.text, *(message.content + message.reasoning for message in messages)])
    marks: dict[str, tuple[int, Kind, int]] = {}  # mark -> message, kind, offset from the mark to the text's edge
    changed = list(messages)
    for n in which:
        for kind, name in FIELDS:
            text = getattr(messages[n], name)
            if text or kind == "content":
                start, end = _edges(text, place)
                first, second = next(free, ""), next(free, "")
                if not second:
                    return None
                marks |= {first: (n, kind, -start), second: (n, kind, len(text) - end)}
                text = text[:start] + first + text[start:end] + second + text[end:]
                changed[n] = replace(changed[n], **{name: text})
    try:
        found = form.render(changed, add_generation_prompt=prompts).text
    except LlmcliError:
        return None
    places: dict[tuple[int, Kind], list[int]] = {}
    plain = 0
    for char in found:
        if char in marks:
            n, kind, offset = marks[char]
            places.setdefault((n, kind), []).append(plain + (offset if place == "inside" else 0))
        else:
            plain += 1
    if found.translate(dict.fromkeys(map(ord, marks))) != rendered.text:
        return None
    fields = [Part(spans[0], spans[1], n, kind) for (n, kind), spans in places.items() if len(spans) == 2]
    whole = [field for field in fields if _is_whole(rendered.text, field, messages)]
    return sorted(whole, key=lambda field: (field.start, field.end))


def _edges(text: str, place: str) -> tuple[int, int]:
    """Where the marks go."""
    start, end = 0, len(text)
    if place == "stripped":
        start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    elif place == "inside":
        start, end = min(1, len(text)), len(text) - 1
    return (start, end) if start <= end else (0, 0)


def _is_whole(text: str, field: Part, messages: Sequence[Message]) -> bool:
    """Whether the field has the message's text, apart from white space at its ends."""
    assert field.message is not None
    own: str = getattr(messages[field.message], dict(FIELDS)[field.kind])
    return text[field.start : field.end].strip() == own.strip()
