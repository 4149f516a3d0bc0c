"""``config``: options and where they are set, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from llmcli.files.ndjson import write_line
from llmcli.render import json_forms
from llmcli.render.table import Cell, Column, print_table
from llmcli.render.terminal import note
from llmcli.render.text import one_line


@dataclass(frozen=True)
class Setting:
    """An option and its value. ``command`` is None if it applies to every command that has the option.

    ``source`` is "default", "file" or "environment"; ``where`` is the key in the file or the name of the variable.
    """

    option: str
    command: str | None
    value: Any
    source: str
    where: str | None


def print_settings(
    path: Path, rows: Sequence[Setting], faults: Sequence[str], stream: TextIO, notes: TextIO, *, command: str | None
) -> None:
    """Print a row for each setting on ``stream``, and what is wrong on ``notes``.

    ``command`` is the command whose options these are, None for the options that are set anywhere.
    """
    for fault in faults:
        note(one_line(fault), notes)
    if rows:
        owner = [] if command else [Column("command", right=False)]
        columns = [Column("option", right=False), *owner, Column("value", right=False)]
        columns.append(Column("source", right=False, plain=("source", "where")))
        print_table(columns, [_row(row, path, command) for row in rows], stream)
    if command is None:
        lead = "" if rows else "no options are set. "
        note(f"{lead}llmcli config COMMAND lists a command's options. Config file: {path}", notes)


def _row(row: Setting, path: Path, command: str | None) -> list[Cell]:
    origin = f"{path}: {row.where}" if row.source == "file" else row.where or row.source
    style = "dim" if row.source == "default" else ""
    owner = [] if command else [row.command or "all"]
    cells = [Cell(one_line(text), style=style) for text in (row.option, *owner, _shown(row.value))]
    return [*cells, Cell(one_line(origin), (row.source, one_line(row.where or "")), style)]


def _shown(value: Any) -> str:
    if value is None or value is False:
        return "" if value is None else "off"
    if value is True:
        return "on"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def write_settings_json(path: Path, rows: Sequence[Setting], faults: Sequence[str], stream: TextIO) -> None:
    """Write the settings and what is wrong as one JSON object."""
    record = {"path": str(path), "options": [json_forms.record(row) for row in rows], "faults": list(faults)}
    write_line(record, stream)
