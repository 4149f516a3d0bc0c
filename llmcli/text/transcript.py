"""Saved chats: JSON files that hold a model's name and the messages, and that are complete at every moment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from llmcli.errors import LlmcliError
from llmcli.files.atomic import clear_leftovers, replacing, write_error
from llmcli.files.json import json_object, read_json, read_json_value
from llmcli.files.lock import open_locked
from llmcli.text.chat_template import REASONING, ROLES, Message
from llmcli.text.surrogates import is_unicode

MISSING = "give the file of a saved chat"
HINT = 'a saved chat is {"model": NAME, "messages": [{"role": ROLE, "content": TEXT}]}'


def read_transcript(path: Path) -> tuple[Message, ...]:
    """Return the messages of a saved chat. Raises LlmcliError if the file does not exist or is not a saved chat."""
    return _messages_of(read_json(path, MISSING, HINT), path)


def read_messages(path: Path) -> tuple[Message, ...]:
    """Return the messages in a file: a saved chat, or their list alone. Raises LlmcliError if it is neither."""
    found = read_json_value(path, MISSING, HINT)
    if isinstance(found, list):
        return parse_messages(found, f"{path}: ")
    return _messages_of(json_object(found, path, HINT), path)


def _messages_of(chat: Mapping[str, object], path: Path) -> tuple[Message, ...]:
    messages = chat.get("messages")
    if not isinstance(messages, list):
        raise LlmcliError(f"{path}: no list of messages", HINT)
    return parse_messages(messages, f"{path}: ")


def parse_messages(entries: Sequence[object], where: str = "") -> tuple[Message, ...]:
    """Return the messages of a JSON list. Raises LlmcliError, whose text begins with ``where``, if one is invalid."""
    return tuple(_parse_message(entry, f"{where}message {n}") for n, entry in enumerate(entries))


def _parse_message(entry: object, where: str) -> Message:
    found = entry if isinstance(entry, dict) else {}
    role, content, reasoning = found.get("role"), found.get("content"), found.get(REASONING) or ""
    if role not in ROLES:
        raise LlmcliError(f"{where}: the role must be one of {', '.join(ROLES)}", HINT)
    if not isinstance(content, str):
        raise LlmcliError(f"{where}: the content must be a string", HINT)
    if not isinstance(reasoning, str):
        raise LlmcliError(f"{where}: {REASONING} must be a string", HINT)
    if not (is_unicode(content) and is_unicode(reasoning)):
        raise LlmcliError(f"{where} is not valid Unicode", "correct the file")
    return Message(role, content, reasoning)


def write_transcript(path: Path, model: str, messages: Sequence[Message]) -> None:
    """Save a chat. An older version is replaced in one step, so that a complete file exists at every moment.

    Raises LlmcliError if the file cannot be written, exists and is not a saved chat, or belongs to a running chat.
    """
    with ChatFile(path) as file:
        file.write(model, messages)


class ChatFile:
    """The file of a running chat: a context manager that locks the file, once it exists, against other chats.

    A file that ``reserve`` created is deleted if it still has no messages at the end. Raises LlmcliError if another
    process has locked it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._locked: BinaryIO | None = None
        self._known: os.stat_result | None = None  # the version that this process read or wrote last
        self._reserved = False

    def __enter__(self) -> ChatFile:
        clear_leftovers(self.path)
        try:
            self._lock()
            self._known = self._version()
        except OSError as error:
            raise write_error(self.path, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        unused = self._reserved and self._is_known()
        self._unlock()  # Windows deletes no open file
        if unused:
            with suppress(OSError):
                self.path.unlink()

    def read(self) -> tuple[Message, ...]:
        """Return the messages, none if there is no file yet. Raises LlmcliError if it is not a saved chat."""
        return () if self._known is None else read_transcript(self.path)

    def reserve(self, model: str) -> None:
        """Create the file, unless it exists: of several chats that begin at the same time, one has the name.

        Raises LlmcliError if another process was first, or if the file cannot be written.
        """
        if self._known is None:
            self.write(model, ())
            self._reserved = True

    def write(self, model: str, messages: Sequence[Message]) -> None:
        """Replace the messages. Raises LlmcliError if another program changed the file, or if it cannot be written."""
        record = {"model": model, "messages": [message.record() for message in messages]}
        data = json.dumps(record, ensure_ascii=False, indent=1).encode() + b"\n"
        try:
            new = not self.path.exists()
            if not new:
                self._check_replaceable()
            self._unlock()  # Windows cannot replace an open file
            try:
                with replacing(self.path, new=new) as file:
                    if new:
                        Path(file.name).chmod(0o600)  # a chat is private
                    file.write(data)
                    written = os.fstat(file.fileno())
            finally:
                self._lock()
            self._known, self._reserved = self._version(), False
            if self._known is None or self._known.st_ino != written.st_ino:
                raise self._changed()
        except OSError as error:
            raise write_error(self.path, error) from error

    def is_at(self, path: Path) -> bool:
        """Whether this file exists and ``path`` leads to it."""
        return path.exists() and self.path.exists() and path.samefile(self.path)

    def _lock(self) -> None:
        if self.path.exists():
            with suppress(FileNotFoundError):
                self._locked = open_locked(self.path)

    def _unlock(self) -> None:
        if self._locked is not None:
            self._locked.close()
            self._locked = None

    def _version(self) -> os.stat_result | None:
        return None if self._locked is None else os.fstat(self._locked.fileno())

    def _check_replaceable(self) -> None:
        """Raise LlmcliError if the file is not a saved chat, or has messages that this process does not know."""
        _check_is_chat(self.path)
        if not self._is_known():
            raise self._changed()

    def _is_known(self) -> bool:
        """Whether the file is as this process read or wrote it last."""
        if self._known is None or not self.path.exists():
            return False
        found, names = self.path.stat(), ("st_ino", "st_size", "st_mtime_ns")
        return all(getattr(found, name) == getattr(self._known, name) for name in names)

    def _changed(self) -> LlmcliError:
        return LlmcliError(f"another program has changed {self.path}", "use another file")


def _check_is_chat(path: Path) -> None:
    """Raise LlmcliError unless the existing file is a saved chat, because nothing else may be overwritten."""
    try:
        read_transcript(path)
    except LlmcliError as error:
        raise LlmcliError(f"{path} exists and is not a saved chat", "use another file") from error
