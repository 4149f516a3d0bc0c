"""A conversation as the tokens that the model receives: which message each is from, and which the template adds.

Imports no torch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from llmcli.errors import usage_error
from llmcli.explain.report import Check, Claim, Report, check
from llmcli.explain.tokens.tokenization import check_length, tokenizer_of
from llmcli.text.attribution import Attribution, Part
from llmcli.text.chat_format import RenderedChat, TemplateFormat
from llmcli.text.chat_template import ChatTemplate, Message, find_template
from llmcli.text.tokenizer import Tokenizer, byte_spans

if TYPE_CHECKING:
    from llmcli.generation.loaded import LoadedModel

Kind = Literal["content", "thoughts", "mixed", "template", "special"]


@dataclass(frozen=True)
class ChatToken:
    """One token of a rendered conversation; ``start`` and ``end`` are byte offsets into its text.

    ``message`` is the index of its message, the number of messages for the beginning of the next reply, and None for
    what cannot be attributed to one. ``kind`` is "special" for a special token that the template writes, "mixed" for a
    token of the template and of a message.
    """

    id: int
    text: str
    bytes: bytes
    start: int
    end: int
    message: int | None
    role: str
    kind: Kind


@dataclass(frozen=True)
class ChatMessage:
    """What became of a message: its tokens, those of its own text, and whether that text occurs once and unchanged."""

    role: str
    tokens: int
    own_tokens: int
    found: bool


@dataclass(frozen=True)
class Lookalike:
    """Text in a message that looks like a special token. It is encoded as ordinary text."""

    message: int
    text: str


@dataclass(frozen=True)
class ChatTokenization(Report):
    """A conversation as one model's template and tokenizer turn it into tokens.

    ``doubled`` is the special token with which it begins twice, if it does.
    """

    model: str
    text: str
    tokens: tuple[ChatToken, ...]
    messages: tuple[ChatMessage, ...]
    doubled: str | None
    lookalikes: tuple[Lookalike, ...]
    check: Check


def tokenize_chat(
    model: Tokenizer | LoadedModel, messages: Sequence[Message], template: ChatTemplate | None = None
) -> ChatTokenization:
    """Tokenize a conversation, up to where the next reply begins unless it ends with a reply.

    ``template`` replaces the model's own. Raises LlmcliError if there is none, if it rejects the messages, or if the
    conversation is too long for a report.
    """
    tokenizer = tokenizer_of(model)
    template = template or _template_of(model)
    if not messages:
        raise usage_error("the conversation is empty", "give at least one message")
    check_length("".join(message.content for message in messages))
    form = TemplateFormat(template, tokenizer)
    attribution = Attribution(form, messages, add_generation_prompt=messages[-1].role != "assistant")
    rendered, parts = attribution.rendered, attribution.parts()
    encoded = form.encode_spans(rendered)
    ids = [id for id, _, _ in encoded]
    tokens = _tokens(tokenizer, rendered, encoded, parts, messages)
    texts = {part.message for part in parts if part.kind == "content"}
    found = [n in texts or not message.content.strip() for n, message in enumerate(messages)]
    return ChatTokenization(
        model=tokenizer.name,
        text=rendered.text,
        tokens=tokens,
        messages=tuple(_message(n, message.role, tokens, found[n]) for n, message in enumerate(messages)),
        doubled=form.doubled_token(messages),
        lookalikes=tuple(Lookalike(n, text) for n, message in enumerate(messages) for text in form.lookalikes(message)),
        check=_check(tokenizer, form, rendered, ids),
    )


def _template_of(model: Tokenizer | LoadedModel) -> ChatTemplate:
    folder = getattr(model, "folder", None)
    found = None if folder is None else find_template(folder)
    if found is None:
        raise usage_error(f"{tokenizer_of(model).name} has no chat template", "pass one as template")
    return found


def _tokens(
    tokenizer: Tokenizer,
    rendered: RenderedChat,
    encoded: Sequence[tuple[int, int, int]],
    parts: Sequence[Part],
    messages: Sequence[Message],
) -> tuple[ChatToken, ...]:
    """The tokens, each with the part that it is in."""
    ids = [id for id, _, _ in encoded]
    data = [tokenizer.token_bytes(id) for id in ids]
    spans = byte_spans(rendered.text, data, [False] * len(ids), [(start, end) for _, start, end in encoded])
    offsets = [0]
    for char in rendered.text:
        offsets.append(offsets[-1] + len(char.encode("utf-8", "surrogatepass")))
    starts = [offsets[part.start] for part in parts]
    control = {(offsets[start], offsets[end]) for start, end in rendered.control_spans}
    roles = [*(message.role for message in messages), "assistant"]
    tokens = []
    for id, raw, (start, end) in zip(ids, data, spans, strict=True):
        touched = parts[max(bisect_right(starts, start) - 1, 0) : max(bisect_right(starts, max(end - 1, start)), 1)]
        own = next((part for part in touched if part.kind != "template"), touched[0])
        kind: Kind = "special" if (start, end) in control else own.kind
        if kind not in ("special", "template") and any(part.kind == "template" for part in touched):
            kind = "mixed"
        role = "" if own.message is None else roles[own.message]
        tokens.append(ChatToken(id, raw.decode("utf-8", "replace"), raw, start, end, own.message, role, kind))
    return tuple(tokens)


def _message(index: int, role: str, tokens: Sequence[ChatToken], found: bool) -> ChatMessage:
    own = [token for token in tokens if token.message == index]
    return ChatMessage(role, len(own), sum(token.kind not in ("template", "special") for token in own), found)


def _check(tokenizer: Tokenizer, form: TemplateFormat, rendered: RenderedChat, ids: Sequence[int]) -> Check:
    """Check the ids against those of the pieces that a chat reads one after the other, and their bytes."""
    starts = [start for start, _ in rendered.control_spans if start]
    pieces = [rendered.before(end).after(start) for start, end in pairwise([0, *starts, len(rendered.text)])]
    piecewise = [id for piece in pieces for id in form.encode(piece)]
    differing = sum(a != b for a, b in zip(ids, piecewise, strict=False)) + abs(len(ids) - len(piecewise))
    claims = [Claim("the ids are those that chat reads, turn by turn", differing, 0.0)]
    if tokenizer.unknown_id not in ids:
        expected = _letters("".join(_normalized(tokenizer, piece) for piece in pieces).encode())
        joined = _letters(b"".join(map(tokenizer.token_bytes, ids)))
        lost = sum(a != b for a, b in zip(joined, expected, strict=False)) + abs(len(joined) - len(expected))
        claims.append(Claim("the tokens' bytes, joined, are the text, apart from spaces", lost, 0.0))
    return check(*claims)


def _normalized(tokenizer: Tokenizer, piece: RenderedChat) -> str:
    """A piece as the tokenizer normalizes it, except for the control token that it may begin with."""
    end = piece.control_spans[0][1] if piece.control_spans else 0
    return piece.text[:end] + (tokenizer.normalize(piece.text[end:]) if piece.text[end:] else "")


def _letters(data: bytes) -> bytes:
    """``data`` without spaces and the sign that stands for them, which tokenizers add and drop."""
    return data.replace("\u2581".encode(), b"").replace(b" ", b"")
