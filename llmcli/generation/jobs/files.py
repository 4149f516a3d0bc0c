"""A file of prompts, a JSON object a line, and a file of what was written, likewise: nothing lost, nothing twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmcli.errors import LlmcliError, usage_error
from llmcli.files.ndjson import to_line
from llmcli.generation.batch import Written
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler

BEGINNING = b'{"id": '  # of every result


@dataclass(frozen=True)
class Job:
    """What a line asks for. ``id`` is its own, or the number of the line, from 1."""

    number: int
    id: str | int
    prompt: str
    seed: int
    max_tokens: int
    stop: tuple[str, ...]


@dataclass(frozen=True)
class Broken:
    """A line that asks for nothing that can be done, and why."""

    number: int
    reason: str


@dataclass(frozen=True)
class Usual:
    """What holds for a line that does not say otherwise; its seed is this plus its place in the file, from 0."""

    seed: int
    max_tokens: int
    stop: tuple[str, ...]


def read_jobs(path: Path, usual: Usual) -> Iterator[Job | Broken]:
    """What each line asks for, in order; empty lines are passed over. Errors: no file, or it cannot be read."""
    _check_file(path)
    seen: dict[str | int, int] = {}
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    job = _job(number, line, usual)
                except ValueError as error:
                    yield Broken(number, str(error))
                    continue
                if job.id in seen:
                    yield Broken(number, f"id {_shown(job.id)} is that of line {seen[job.id]}")
                    continue
                seen[job.id] = number
                yield job
    except OSError as error:
        raise usage_error(f"{path}: {error.strerror or error}", "give a file of JSON lines") from error


def _check_file(path: Path) -> None:
    """Raise at a pipe or a device: what was stopped could not go on, and each file is read more than once.

    Raise also at a name that can be none.
    """
    try:
        other = path.exists() and not (path.is_file() or path.is_dir())
    except OSError as error:
        raise usage_error(f"{path}: {error.strerror or error}", "name another file") from error
    if other or str(path) == "-":
        raise usage_error(f"{path} is no file", "a pipe cannot be read again when a run goes on: name a file")


def _job(number: int, line: bytes, usual: Usual) -> Job:
    """The line's job. Raises ValueError, with what is wrong in it."""
    try:
        said = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not valid UTF-8 at byte {error.start}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(said, dict):
        raise ValueError("not a JSON object")
    id = _of_type(said, "id", (str, int), number)
    if isinstance(id, str) and not _is_unicode(id):
        raise ValueError("id is not valid Unicode")
    stop = _of_type(said, "stop", (str, list), list(usual.stop))
    stop = [stop] if isinstance(stop, str) else stop
    if not all(isinstance(text, str) and text for text in stop):
        raise ValueError("stop is no text, nor a list of texts")
    if not all(map(_is_unicode, stop)):
        raise ValueError("stop is not valid Unicode")
    seed = _of_type(said, "seed", (int,), usual.seed + number - 1)
    max_tokens = _of_type(said, "max_tokens", (int,), usual.max_tokens)
    if "prompt" not in said:
        raise ValueError("there is no prompt")
    if seed < 0 or max_tokens < 1:
        raise ValueError(f"{'seed' if seed < 0 else 'max_tokens'} is too small")
    return Job(number, id, _of_type(said, "prompt", (str,), ""), seed, max_tokens, tuple(stop))


def _of_type(said: Mapping[str, Any], key: str, types: tuple[type, ...], otherwise: Any) -> Any:
    value = said.get(key, otherwise)
    if not isinstance(value, types) or isinstance(value, bool):
        raise ValueError(f"{key} is {_shown(value)}, not {' or '.join(_NAMES[kind] for kind in types)}")
    return value


def _is_unicode(text: str) -> bool:
    return not any(0xD800 <= ord(char) <= 0xDFFF for char in text)


def _shown(value: Any, most: int = 60) -> str:
    """A value in a message, or its beginning."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


_NAMES = {str: "text", int: "a whole number", list: "a list"}


def mark(job: Job, loaded: LoadedModel, sampler: Sampler, others: Mapping[str, Any]) -> str:
    """A few characters that differ where anything differs that a job's text depends on."""
    filters = [repr(filter) for filter in sampler.filters if filter.name != "grammar"]  # its rules are among others
    return digest(asdict(job), loaded.name, str(loaded.model.dtype), filters, dict(others))


def digest(*all_of_it: Any) -> str:
    """A mark: a few characters that differ where any part does."""
    return hashlib.sha256(json.dumps(list(all_of_it), sort_keys=True).encode()).hexdigest()[:16]


class Results:
    """The file of results: each is appended whole, and ``done`` tells the mark of each that is there, by id, in order.

    ``ends`` are why each ended, and whether it is what a grammar asks for, where there is one.
    A last line that was cut short (``torn``) is taken off when the file is opened for more.
    Errors: it cannot be read or written, or is no file of results, or somebody else writes to it too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str | int, str] = {}
        self.ends: list[tuple[str, bool | None]] = []
        self.torn = False
        self._whole = 0  # bytes of whole lines
        self._rest = 0  # bytes of a torn one
        self._file: Any = None
        _check_file(path)
        if not path.absolute().parent.is_dir():
            raise usage_error(f"there is no folder {path.parent}", "make it first, or name another file")
        if path.exists():
            self._read()

    def _read(self) -> None:
        try:
            with self.path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.endswith(b"\n"):
                        if not _cut_short(line):
                            raise self._foreign(number)
                        self.torn, self._rest = True, len(line)
                        return
                    self._note(number, line)
                    self._whole += len(line)
        except OSError as error:
            raise usage_error(f"{self.path}: {error.strerror or error}", "name another file") from error

    def _note(self, number: int, line: bytes) -> None:
        try:
            record = json.loads(line)
            self.done[record["id"]] = record["mark"]
            self._note_end(record)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._foreign(number) from error

    def _foreign(self, number: int) -> LlmcliError:
        return usage_error(f"{self.path}:{number} is no result of llmcli batch", "name another file")

    def __enter__(self) -> Results:
        try:
            self._file = self.path.open("ab", buffering=0)
            self._check_size(self._whole + self._rest)
            self._file.truncate(self._whole)
        except OSError as error:
            raise usage_error(f"{self.path}: {error.strerror or error}", "name another file") from error
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def append(self, record: Mapping[str, Any]) -> None:
        """A line, in one write: a process that is killed leaves it whole or not at all."""
        self._check_size(self._whole)
        line = to_line(record).encode()
        if self._file.write(line) != len(line):
            raise LlmcliError(f"{self.path}: no space left to write to", "free some, and start again")
        self._whole += len(line)
        self.done[record["id"]] = record["mark"]
        self._note_end(record)

    @property
    def size(self) -> int:
        """Bytes of the results that are there."""
        return self._whole

    def _note_end(self, record: Mapping[str, Any]) -> None:
        self.ends.append((record["finish"], record.get("valid")))

    def _check_size(self, size: int) -> None:
        """Raise where the file is not as it was left: two runs at once would each write every text."""
        if os.fstat(self._file.fileno()).st_size != size:
            raise LlmcliError(f"{self.path} is written to by somebody else too", "wait for the other run to end")


def _cut_short(line: bytes) -> bool:
    """Whether this may be the beginning of a result: nothing else is taken off a file."""
    if not (line.startswith(BEGINNING) or BEGINNING.startswith(line)):
        return False
    try:
        return "mark" in json.loads(line)
    except (ValueError, RecursionError):
        return True


def result(job: Job, written: Written, mark: str) -> dict[str, Any]:
    """What is kept of a text: ``mean_logprob`` in nats a token, ``valid`` where a grammar was to be kept."""
    return {
        "id": job.id,
        "text": written.writing.text,
        "finish": written.writing.finish,
        "prompt_tokens": len(written.task.prompt_ids),
        "tokens": written.writing.tokens,
        "mean_logprob": written.mean_logprob,
        "seed": job.seed,
        "mark": mark,
        **({} if written.writing.valid is None else {"valid": written.writing.valid}),
    }
