"""Saved chats: a JSON file of a model's name and the messages, whole at every moment."""

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
    """The messages of a saved chat. Errors: no such file, or it holds something else."""
    found = read_json(path, "name a chat that was saved").get("messages")
    if not isinstance(found, list):
        raise LlmcliError(f"{path}: holds no messages", HINT)
    return tuple(_message(entry, f"{path}: message {n}") for n, entry in enumerate(found))


def _message(entry: object, where: str) -> Message:
    role, content = (entry.get("role"), entry.get("content")) if isinstance(entry, dict) else (None, None)
    if role not in ROLES:
        raise LlmcliError(f"{where} has no role of {', '.join(ROLES)}", HINT)
    if not isinstance(content, str):
        raise LlmcliError(f"{where} has no text as its content", HINT)
    try:
        content.encode()
    except UnicodeEncodeError:
        raise LlmcliError(f"{where} is not valid Unicode", "correct the file") from None
    return Message(role, content)


def write_transcript(path: Path, model: str, messages: Sequence[Message]) -> None:
    """Save a chat, in the place of an older one only when it is whole: killed at any moment, one of them is there.

    Errors: the file cannot be written, or holds something else than a chat.
    """
    record = {"model": model, "messages": [asdict(message) for message in messages]}
    data = json.dumps(record, ensure_ascii=False, indent=1).encode() + b"\n"
    try:
        path = path.resolve()  # a link stays one
        if path.exists():
            _check_chat(path)
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
    except (OSError, RuntimeError, ValueError) as error:  # the last two of links in a circle, or of a NUL in its name
        raise LlmcliError(f"{path}: {getattr(error, 'strerror', None) or error}", "save it elsewhere") from error


def _check_chat(path: Path) -> None:
    """Raise unless what is there is a saved chat: nothing else is overwritten."""
    try:
        read_transcript(path)
    except LlmcliError as error:
        raise LlmcliError(f"{path} is there already, and is no saved chat", "name another file") from error
