"""The file of prompts of a batch: one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcli.errors import LlmcliError, usage_error
from llmcli.generation.choice_texts import check_choices
from llmcli.text.chat_template import Message
from llmcli.text.surrogates import is_unicode
from llmcli.text.transcript import parse_messages

JobId = str | int

_TYPE_NAMES = {str: "a string", int: "an integer", list: "a list"}


@dataclass(frozen=True)
class Job:
    """One prompt and its settings. ``number`` is its line in the file, from 1, and the default of ``id``."""

    number: int
    id: JobId
    prompt: str
    seed: int
    max_tokens: int
    stop: tuple[str, ...]


@dataclass(frozen=True)
class QuestionJob(Job):
    """A prompt with choices, of which ``answer`` is the index of the right one; None if it is not given."""

    choices: tuple[str, ...]
    answer: int | None


@dataclass(frozen=True)
class ChatJob(Job):
    """A conversation to reply to, instead of a prompt."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class InvalidLine:
    """A line that cannot be used, and why."""

    number: int
    reason: str


@dataclass(frozen=True)
class JobDefaults:
    """Settings for lines without their own. The seed of a line is ``seed`` plus its index in the file, from 0.

    With ``choices``, every line is a question with these choices or its own.
    """

    seed: int
    max_tokens: int
    stop: tuple[str, ...]
    choices: tuple[str, ...] | None = None


def read_jobs(path: Path, defaults: JobDefaults) -> Iterator[Job | InvalidLine]:
    """Read each line of the file, in order, except empty lines. Raises LlmcliError if the file cannot be read."""
    check_regular_file(path)
    lines_by_id: dict[JobId, int] = {}
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    job = _parse(number, line, defaults)
                except ValueError as error:
                    yield InvalidLine(number, str(error))
                    continue
                if job.id in lines_by_id:
                    yield InvalidLine(number, f"id {_shortened(job.id)} repeats that of line {lines_by_id[job.id]}")
                    continue
                lines_by_id[job.id] = number
                yield job
    except OSError as error:
        raise usage_error(f"{path}: {error.strerror or error}", "name a JSON Lines file") from error


def check_regular_file(path: Path) -> None:
    """Raise LlmcliError if the path is a pipe, a device or not a possible name.

    Each file is read more than once, and again when a stopped run resumes; a pipe allows neither.
    """
    try:
        irregular = path.exists() and not (path.is_file() or path.is_dir())
    except OSError as error:
        raise usage_error(f"{path}: {error.strerror or error}", "name another file") from error
    if irregular or str(path) == "-":
        raise usage_error(f"{path} is not a regular file", "name a file, so that a stopped run can be resumed")


def _parse(number: int, line: bytes, defaults: JobDefaults) -> Job:
    """The job of a line. Raises ValueError with the reason if the line is invalid."""
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not valid UTF-8 at byte {error.start}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    id = _typed(values, "id", (str, int), number)
    if isinstance(id, str) and not is_unicode(id):
        raise ValueError("id is not valid Unicode")
    stop = _typed(values, "stop", (str, list), list(defaults.stop))
    stop = [stop] if isinstance(stop, str) else stop
    if not all(isinstance(text, str) and text for text in stop):
        raise ValueError("stop must be a non-empty string or a list of them")
    if not all(map(is_unicode, stop)):
        raise ValueError("stop is not valid Unicode")
    seed = _typed(values, "seed", (int,), defaults.seed + number - 1)
    max_tokens = _typed(values, "max_tokens", (int,), defaults.max_tokens)
    if ("prompt" in values) == ("messages" in values):
        raise ValueError("prompt and messages exclude each other" if "prompt" in values else "prompt is missing")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, not {seed}")
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    job = Job(number, id, _typed(values, "prompt", (str,), ""), seed, max_tokens, tuple(stop))
    asks = values.get("choices") is not None or defaults.choices is not None
    if "messages" in values:
        if asks:
            raise ValueError("choices need a prompt, not messages")
        return ChatJob(**vars(job), messages=_messages(_typed(values, "messages", (list,), [])))
    if not asks:
        return job
    choices = _choices(values, defaults.choices)
    return QuestionJob(**vars(job), choices=choices, answer=_answer(values.get("answer"), choices))


def _messages(entries: list[Any]) -> tuple[Message, ...]:
    if not entries:
        raise ValueError("messages must not be empty")
    try:
        return parse_messages(entries)
    except LlmcliError as error:
        raise ValueError(error.message) from None


def _choices(values: Mapping[str, Any], default: tuple[str, ...] | None) -> tuple[str, ...]:
    """The choices of a line, or the default."""
    given = values.get("choices")
    if given is None and default is not None:
        return default
    if not isinstance(given, list) or len(given) < 2 or not all(isinstance(text, str) for text in given):
        raise ValueError("choices must be a list of at least two strings")
    try:
        check_choices(given)
    except LlmcliError as error:
        raise ValueError(error.message) from None
    return tuple(given)


def _answer(given: Any, choices: Sequence[str]) -> int | None:
    """The index of the right choice, given as its index or its text; spaces around the text may differ."""
    if given is None:
        return None
    if isinstance(given, int) and not isinstance(given, bool):
        if 0 <= given < len(choices):
            return given
        raise ValueError(f"answer {given} is not the index of a choice: these are 0 to {len(choices) - 1}")
    found = [n for n, text in enumerate(choices) if text == given]
    found = found or [n for n, text in enumerate(choices) if isinstance(given, str) and text.strip() == given.strip()]
    if len(found) != 1:
        raise ValueError(f"answer must be a choice or its index, not {_shortened(given)}")
    return found[0]


def _typed(values: Mapping[str, Any], key: str, types: tuple[type, ...], default: Any) -> Any:
    """The value of ``key``, which must have one of ``types``."""
    value = values.get(key, default)
    if not isinstance(value, types) or isinstance(value, bool):
        expected = " or ".join(_TYPE_NAMES[kind] for kind in types)
        raise ValueError(f"{key} must be {expected}, not {_shortened(value)}")
    return value


def _shortened(value: Any, most: int = 60) -> str:
    """A value for a message; a long one is cut."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= most else f"{text[:most]}…"
