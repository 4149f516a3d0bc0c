"""The file of results of a batch, one JSON object per line, from which a stopped run resumes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmcli.errors import LlmcliError, usage_error
from llmcli.files.atomic import append_line, clear_leftovers, write_error
from llmcli.files.lock import lock_for_writing
from llmcli.files.ndjson import to_line
from llmcli.generation.jobs.prompts import Job, JobId, check_regular_file
from llmcli.text.chat_template import REASONING

FIRST_KEY = b'{"id": '  # how every result begins


def digest(*parts: Any) -> str:
    """A short hash that changes if any of ``parts`` does."""
    return hashlib.sha256(json.dumps(list(parts), sort_keys=True).encode()).hexdigest()[:16]


def result(
    job: Job,
    *,
    text: str,
    finish: str,
    prompt_tokens: int | None,
    tokens: int | None,
    mean_logprob: float | None,
    mark: str,
    valid: bool | None = None,
    thoughts: tuple[str, int | None] | None = None,
) -> dict[str, Any]:
    """The record of one text. ``mark`` is the digest of everything that the text depends on.

    ``mean_logprob`` is per token, in nats. ``valid`` is whether the text fits the grammar; without one, it is omitted.
    ``thoughts`` are those before the text, with the number of their tokens; they are omitted if there are none.
    """
    record = {
        "id": job.id,
        "text": text,
        "finish": finish,
        "prompt_tokens": prompt_tokens,
        "tokens": tokens,
        "mean_logprob": mean_logprob,
        "seed": job.seed,
        "mark": mark,
    }
    if thoughts is not None and thoughts[0]:
        record |= {REASONING: thoughts[0], "reasoning_tokens": thoughts[1]}
    return record if valid is None else {**record, "valid": valid}


class Results:
    """A context manager that appends results to a file, each one as a whole line.

    ``done`` maps the ids of the results in the file, in order, to their marks; ``ends`` lists why each text ended and
    whether it fits the grammar (None without one). If the last line is incomplete (``torn``), opening the file for
    writing removes it.

    Raises LlmcliError if the file cannot be read or written, is not a file of results, or is written by another process
    at the same time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[JobId, str] = {}
        self.ends: list[tuple[str, bool | None]] = []
        self.torn = False
        self._whole = 0  # bytes of complete lines
        self._rest = 0  # bytes of an incomplete last line
        self._file: Any = None
        check_regular_file(path)
        clear_leftovers(path)  # of a merge
        if not path.absolute().parent.is_dir():
            raise usage_error(f"the folder {path.parent} does not exist", "create it, or name another file")
        if path.exists():
            self._read()

    @property
    def size(self) -> int:
        """Bytes of complete results."""
        return self._whole

    def _read(self) -> None:
        try:
            with self.path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.endswith(b"\n"):
                        if not _may_be_torn_result(line):
                            raise self._not_a_result(number)
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
            raise self._not_a_result(number) from error

    def _note_end(self, record: Mapping[str, Any]) -> None:
        self.ends.append((record["finish"], record.get("valid")))

    def _not_a_result(self, number: int) -> LlmcliError:
        return usage_error(f"{self.path}:{number} is not a result of llmcli batch", "name another file")

    def __enter__(self) -> Results:
        try:
            self._file = self.path.open("ab", buffering=0)
            lock_for_writing(self._file, self.path)
            self._check_size(self._whole + self._rest)
            self._file.truncate(self._whole)
        except OSError as error:
            raise usage_error(f"{self.path}: {error.strerror or error}", "name another file") from error
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with self._file:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(self.path, error) from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a result in one write, so that even a killed process leaves the line complete or absent."""
        self._check_size(self._whole)
        line = to_line(record).encode()
        append_line(self._file, line, self.path)
        self._whole += len(line)
        self.done[record["id"]] = record["mark"]
        self._note_end(record)

    def _check_size(self, size: int) -> None:
        """Raise LlmcliError if another process changed the file: each of two runs would generate every text."""
        if os.fstat(self._file.fileno()).st_size != size:
            raise LlmcliError(f"another process is writing to {self.path}", "wait until it ends")


def _may_be_torn_result(line: bytes) -> bool:
    """Whether an incomplete line may be the beginning of a result; nothing else is ever removed from a file."""
    if not (line.startswith(FIRST_KEY) or FIRST_KEY.startswith(line)):
        return False
    try:
        return "mark" in json.loads(line)
    except (ValueError, RecursionError):
        return True
