"""Saved chats: JSON files that hold a model's name and the messages, and that are complete at every moment."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from llmcli.errors import LlmcliError
from llmcli.files.json import read_json
from llmcli.text.chat_template import ROLES, Message

HINT = 'a saved chat is {"model": NAME, "messages": [{"role": ROLE, "content": TEXT}]}'


def read_transcript(path: Path) -> tuple[Message, ...]:
    """Return the messages of a saved chat. Raises LlmcliError if the file does not exist or is not a saved chat."""
    messages = read_json(path, "give the file of a saved chat").get("messages")
    if not isinstance(messages, list):
        raise LlmcliError(f"{path}: no list of messages", HINT)
    return tuple(_parse_message(entry, f"{path}: message {n}") for n, entry in enumerate(messages))


def _parse_message(entry: object, where: str) -> Message:
    role, content = (entry.get("role"), entry.get("content")) if isinstance(entry, dict) else (None, None)
    if role not in ROLES:
        raise LlmcliError(f"{where}: the role must be one of {', '.join(ROLES)}", HINT)
    if not isinstance(content, str):
        raise LlmcliError(f"{where}: the content must be a string", HINT)
    try:
        content.encode()
    except UnicodeEncodeError:
        raise LlmcliError(f"{where} is not valid Unicode", "correct the file") from None
    return Message(role, content)


def write_transcript(path: Path, model: str, messages: Sequence[Message]) -> None:
    """Save a chat. An older version is replaced in one step, so that a complete file exists at every moment.

    Raises LlmcliError if the file cannot be written, or exists and is not a saved chat.
    """
    record = {"model": model, "messages": [asdict(message) for message in messages]}
    data = json.dumps(record, ensure_ascii=False, indent=1).encode() + b"\n"
    try:
        path = path.resolve()  # replace a link's target, not the link
        if path.exists():
            _check_is_chat(path)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)  # noqa: PTH105
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: circular links; ValueError: NUL in the path
        raise LlmcliError(f"{path}: {getattr(error, 'strerror', None) or error}", "use another file") from error


def _check_is_chat(path: Path) -> None:
    """Raise LlmcliError unless the existing file is a saved chat, because nothing else may be overwritten."""
    try:
        read_transcript(path)
    except LlmcliError as error:
        raise LlmcliError(f"{path} exists and is not a saved chat", "use another file") from error
