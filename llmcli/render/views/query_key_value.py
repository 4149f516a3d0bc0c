"""One head at one position: the scores of its query with the keys, the weights, and what it copies."""

from __future__ import annotations

from typing import TextIO

from llmcli import explain
from llmcli.render.marks import bar_cell
from llmcli.render.table import Cell, Column, number_cell, print_table, probability_cell
from llmcli.render.terminal import print_check, print_line
from llmcli.render.text import counted, token_label


def print_head(report: explain.HeadReport, stream: TextIO, *, top: int = 20) -> None:
    """Print the whole view: the ``top`` positions with the largest weights (0: all) in text order."""
    print_matches(report, stream, top=top)
    print_check(report.check, stream)


def print_matches(report: explain.HeadReport, stream: TextIO, *, top: int) -> None:
    """Print the view without its check."""
    print_line(f"head L{report.layer}.H{report.head} at position {report.position}, {token_label(report.at)}:", stream)
    columns = [
        Column("#"),
        Column("token", right=False),
        Column("query · key"),
        Column("weight"),
        Column("", right=False, optional=3, plain="bar"),
        Column("value", optional=2),
        Column("weight × value", optional=1),
    ]
    shown = sorted(report.keys, key=lambda key: -key.weight)[: top or None]
    rows = [_row(key) for key in sorted(shown, key=lambda key: key.position)]
    hidden = len(report.keys) - len(shown)
    if hidden:
        weight, copied = (
            sum(values) - sum(part)
            for values, part in (
                ([key.weight for key in report.keys], [key.weight for key in shown]),
                ([key.copied for key in report.keys], [key.copied for key in shown]),
            )
        )
        name = Cell(counted(hidden, "other"), style="italic")
        empty = Cell("", "")
        rows.append([empty, name, empty, probability_cell(max(weight, 0.0)), empty, empty, number_cell(copied, 3)])
    print_table(columns, rows, stream)
    print_line("weight: softmax of query · key. value: length of what the token passes on.", stream, "dim")
    print_line(_finding(report), stream)


def _finding(report: explain.HeadReport) -> str:
    """Return the sentence that names the token that the head looks at most, and the one that it copies most from."""
    most = max(report.keys, key=lambda key: key.weight)
    source = max(report.keys, key=lambda key: key.copied)
    found = f"It gives {most.weight:.2f} of its attention to {token_label(most.piece)} (position {most.position})"
    if source.position == most.position:
        return f"{found}, and copies most from there."
    return f"{found}, but copies most from {token_label(source.piece)} (position {source.position})."


def _row(key: explain.KeyMatch) -> list[Cell]:
    return [
        Cell(str(key.position)),
        Cell(token_label(key.piece)),
        number_cell(key.score, 2),
        probability_cell(key.weight),
        bar_cell(key.weight, 1.0),
        number_cell(key.size, 2),
        number_cell(key.copied, 3),
    ]
