"""The inputs of a request: prompts, messages, and the spans of them that the model generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmcli.generation.reading import Span
from llmcli.serve.errors import bad_request
from llmcli.text.chat_template import REASONING, ROLES, Message


@dataclass(frozen=True)
class Prompt:
    """A prompt's ids; ``text`` is what ``echo`` repeats. The model wrote the spans ``generated`` of the ids."""

    ids: list[int]
    text: str
    generated: tuple[Span, ...] = ()


def prompt_tokens(prompts: Sequence[Prompt]) -> int:
    """The number of tokens of all prompts."""
    return sum(len(prompt.ids) for prompt in prompts)


def read_spans(given: Any, ids: Sequence[int]) -> tuple[Span, ...]:
    """The spans of a prompt that the model generated. Raises ApiError if they are not spans of ``ids`` in order."""
    spans, reached = list[Span](), 0
    for each in given if isinstance(given, list) else [None]:
        pair: list[Any] = each if isinstance(each, list) and len(each) == 2 else [None, None]
        if not all(type(edge) is int for edge in pair) or not reached <= pair[0] <= pair[1] <= len(ids):
            raise bad_request(
                "generated_spans must be a list of [start, end] in the prompt, in order", "generated_spans"
            )
        spans.append((pair[0], pair[1]))
        reached = pair[1]
    return tuple(spans)


def read_messages(given: Any) -> list[Message]:
    """The messages of a conversation. Raises ApiError if they have another form."""
    if not isinstance(given, list) or not given:
        raise bad_request("messages must be a list with at least one message", "messages")
    return [_message(number, each) for number, each in enumerate(given)]


def _message(number: int, given: Any) -> Message:
    where = f"messages[{number}]"
    if not isinstance(given, dict):
        raise bad_request(f"{where} must be an object", "messages")
    role = "system" if given.get("role") == "developer" else given.get("role")
    if role not in ROLES:
        raise bad_request(f"{where}.role must be one of {', '.join(ROLES)}", "messages")
    content = given.get("content")
    if content is None and role == "assistant":
        content = ""  # a reply that was only thoughts
    if isinstance(content, list):
        if not all(
            isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            for part in content
        ):
            raise bad_request(f"{where}.content has a part that is not text", "messages")
        content = "".join(part["text"] for part in content)
    thoughts = given.get(REASONING) or ""
    if not isinstance(content, str) or not isinstance(thoughts, str):
        raise bad_request(f"{where}.content and {where}.{REASONING} must be strings", "messages")
    return Message(role, content, thoughts)
