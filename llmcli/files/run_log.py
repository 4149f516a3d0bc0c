"""The run log: an SQLite file of the texts that models wrote, and what they were made with.

Several processes can use it at once. On POSIX only its owner can read it, and deleted rows are overwritten.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.errors import LlmcliError

if TYPE_CHECKING:
    from sqlite3 import Connection

VERSION = 1  # of the table
BUSY_SECONDS = 10.0  # how long to wait while another process writes


@dataclass(frozen=True)
class Run:
    """One text: when, by which command and model, from which prompt, and why it ended.

    ``options`` are those that were given, by name, for people. ``replay`` has everything that a repetition needs or, if
    the run cannot be repeated, the reason, as "obstacle". ``fingerprint`` is the model's, None for a server's. ``time``
    is in UTC, as in 2026-01-31T12:00:00Z. ``id`` is 0 before the run is in the log.
    """

    time: str
    command: str
    model: str
    fingerprint: str | None
    prompt: str
    options: Mapping[str, Any]
    replay: Mapping[str, Any]
    seed: int | None
    text: str
    finish: str
    tokens: int
    id: int = 0


COLUMNS = [field.name for field in fields(Run)]
JSON_COLUMNS = ("options", "replay")


class RunLog:
    """The log in the file ``path``, which need not exist. All methods raise LlmcliError if SQLite cannot use it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, run: Run) -> int:
        """Add a run, and return its id. Creates the file if necessary."""
        names = COLUMNS[:-1]
        values = [_stored(name, getattr(run, name)) for name in names]
        with self._open() as db:
            cursor = db.execute(f"INSERT INTO runs ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", values)
            assert cursor.lastrowid is not None
            return cursor.lastrowid

    def latest(self, limit: int, search: str = "") -> list[Run]:
        """The latest runs, newest first, of those whose prompt, text or model contains ``search`` in any case."""
        if not self.path.exists():
            return []
        where = "instr(folded(prompt), ?1) OR instr(folded(text), ?1) OR instr(folded(model), ?1)"
        with self._open() as db:
            query = f"SELECT {', '.join(COLUMNS)} FROM runs WHERE {where} ORDER BY id DESC LIMIT ?2"
            return [_run(row) for row in db.execute(query, (search.casefold(), limit))]

    def get(self, id: int) -> Run:
        """The run with this id. Raises LlmcliError if there is none."""
        rows: list[Any] = []
        if self.path.exists():
            with self._open() as db:
                rows = db.execute(f"SELECT {', '.join(COLUMNS)} FROM runs WHERE id = ?", (id,)).fetchall()
        if not rows:
            raise LlmcliError(f"there is no run {id} in the log", kind="no-such-run")
        return _run(rows[0])

    def delete(self, ids: Sequence[int] | None) -> int:
        """Delete runs, or all of them (None), and return how many there were."""
        if not self.path.exists():
            return 0
        with self._open() as db:
            if ids is None:
                return db.execute("DELETE FROM runs").rowcount
            return sum(db.execute("DELETE FROM runs WHERE id = ?", (id,)).rowcount for id in ids)

    @contextmanager
    def _open(self) -> Iterator[Connection]:
        """A connection in a transaction, which is committed unless an error is raised."""
        try:
            import sqlite3
        except ImportError as error:
            raise LlmcliError("the run log needs sqlite3, which this Python does not have") from error
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS)) as db, db:
                db.execute("PRAGMA secure_delete = ON")
                db.create_function("folded", 1, str.casefold, deterministic=True)
                db.execute("BEGIN IMMEDIATE")
                self._prepare(db)
                yield db
        except (sqlite3.Error, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise LlmcliError(f"{self.path}: {reason}") from error

    def _prepare(self, db: Connection) -> None:
        """Create the table. Raises LlmcliError if another version of llmcli made one that this version cannot read."""
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise LlmcliError(f"{self.path}: a newer version of llmcli wrote this log", "update llmcli")
        if version == 0:
            columns = ", ".join(COLUMNS[:-1])
            db.execute(f"CREATE TABLE runs (id INTEGER PRIMARY KEY AUTOINCREMENT, {columns})")
            db.execute(f"PRAGMA user_version = {VERSION}")


def _stored(name: str, value: Any) -> Any:
    """A value as SQLite stores it. Text that is not valid Unicode loses the invalid characters."""
    if name in JSON_COLUMNS:
        return json.dumps(value)
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _run(row: Sequence[Any]) -> Run:
    values = dict(zip(COLUMNS, row, strict=True))
    return Run(**{name: json.loads(value) if name in JSON_COLUMNS else value for name, value in values.items()})
