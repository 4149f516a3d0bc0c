"""Options and where they are set: a table for the eye, an object for programs."""

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
    """An option and its value. ``command`` is None where it holds for all that have it.

    ``source`` is "default", "file" or "environment"; ``where`` the file's key or the variable's name.
    """

    option: str
    command: str | None
    value: Any
    source: str
    where: str | None


def print_settings(
    path: Path, rows: Sequence[Setting], faults: Sequence[str], stream: TextIO, beside: TextIO, *, of: str | None
) -> None:
    """One row a setting on ``stream``; ``beside`` it what is wrong. ``of`` is the one command that they are of."""
    for fault in faults:
        note(one_line(fault), beside)
    if rows:
        whose = [] if of else [Column("command", right=False)]
        columns = [Column("option", right=False), *whose, Column("value", right=False), Column("from", right=False)]
        print_table(columns, [_row(row, path, of) for row in rows], stream)
    if of is None:
        lead = "" if rows else "nothing is set; "
        note(f"{lead}llmcli config COMMAND shows all that can be; the file is {path}", beside)


def _row(row: Setting, path: Path, of: str | None) -> list[Cell]:
    origin = f"{path}: {row.where}" if row.source == "file" else row.where or row.source
    style = "dim" if row.source == "default" else ""
    whose = [] if of else [row.command or "every"]
    return [Cell(one_line(text), style=style) for text in (row.option, *whose, _shown(row.value), origin)]


def _shown(value: Any) -> str:
    if value is None or value is False:
        return "" if value is None else "off"
    if value is True:
        return "on"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def write_settings_json(path: Path, rows: Sequence[Setting], faults: Sequence[str], stream: TextIO) -> None:
    """All of it, in one object."""
    record = {"path": str(path), "options": [json_forms.record(row) for row in rows], "faults": list(faults)}
    write_line(record, stream)
