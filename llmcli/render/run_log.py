"""``log``: the runs in the log as a table, and one of them in full."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, TextIO

from llmcli.files.run_log import Run
from llmcli.render.generation import ending
from llmcli.render.table import Cell, Column, print_table
from llmcli.render.terminal import print_line, printable
from llmcli.render.text import counted, one_line

SHOWN = 24  # characters of a prompt and of a text in the table


def print_runs(runs: Sequence[Run], stream: TextIO) -> None:
    """Print a row for each run."""
    columns = [
        Column("run"),
        Column("time", right=False, optional=4),
        Column("command", right=False, optional=3),
        Column("model", right=False, optional=2),
        Column("seed", optional=5),
        Column("tokens", optional=1),
        Column("prompt", right=False),
        Column("text", right=False),
    ]
    rows = [
        [
            Cell(str(run.id)),
            Cell(_local_time(run.time), run.time),
            Cell(run.command),
            Cell(one_line(run.model)),
            Cell("" if run.seed is None else str(run.seed)),
            Cell(str(run.tokens)),
            Cell(_start(run.prompt), one_line(run.prompt)),
            Cell(_start(run.text), one_line(run.text)),
        ]
        for run in runs
    ]
    print_table(columns, rows, stream)


def print_run(run: Run, stream: TextIO) -> None:
    """Print a run with its options, its whole prompt and its whole text."""
    seed = "seed not set" if run.seed is None else f"seed {run.seed}"
    print_line(f"run {run.id}: llmcli {run.command}, {_local_time(run.time)}; {one_line(run.model)}; {seed}", stream)
    options = ", ".join(f"{name} {_shown(value)}" for name, value in run.options.items())
    print_line(f"options: {options or 'none'}", stream)
    if run.fingerprint is not None:
        print_line(f"fingerprint of the model: {run.fingerprint}", stream)
    print_line("prompt:", stream, style="bold")
    stream.write(printable(run.prompt, stream) + "\n")
    print_line("text:", stream, style="bold")
    stream.write(printable(run.text, stream) + "\n")
    print_line(f"{counted(run.tokens, 'token')}; stopped: {ending(run.finish)}", stream)


def _local_time(time: str) -> str:
    """A time in UTC as the user's clock shows it."""
    return datetime.fromisoformat(time.replace("Z", "+00:00")).astimezone().strftime("%Y-%m-%d %H:%M")


def _start(text: str) -> str:
    """The start of a text, on one line."""
    return one_line(text[:SHOWN]) + ("…" if len(text) > SHOWN else "")


def _shown(value: Any) -> str:
    """The value of an option as text."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(map(repr, value)) if isinstance(value, list) else one_line(str(value))
