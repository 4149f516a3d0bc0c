"""``steer``: the direction of each layer, and how well it tells the two sets of texts apart."""

from __future__ import annotations

from typing import TextIO

from llmcli import explain
from llmcli.render.marks import bar_cell
from llmcli.render.table import Cell, Column, number_cell, print_table
from llmcli.render.terminal import print_check, print_line
from llmcli.render.text import token_label


def print_steer(report: explain.SteerReport, stream: TextIO) -> None:
    """Print the whole view."""
    positive, negative = report.counts
    print_line(f"steer: what tells {positive} positive from {negative} negative texts apart, after each layer?", stream)
    columns = [
        Column("layer"),
        Column("", right=False, plain="saved"),
        Column("accuracy"),
        Column("", right=False, optional=3, plain="bar"),
        Column("separation"),
        Column("length", optional=1),
        Column("of", optional=2),
        Column("raises", right=False),
        Column("lowers", right=False, optional=4),
    ]
    print_table(columns, [_row(row, row.layer in report.chosen) for row in report.layers], stream)
    print_line(
        "accuracy: texts on the right side of a direction from the others; separation: in standard deviations. "
        "length: of the direction, and of the residual stream. raises, lowers: tokens, as the head reads the former.",
        stream,
        "dim",
    )
    print_line(_finding(report), stream)
    print_check(report.check, stream)


def _row(row: explain.SteerLayer, chosen: bool) -> list[Cell]:
    style = "bold" if chosen else ""
    return [
        Cell(str(row.layer), style=style),
        Cell("→" if chosen else "", style=style),
        number_cell(row.accuracy, 2, style),
        bar_cell(row.accuracy, 1.0),
        number_cell(row.separation, 1),
        number_cell(row.length, 1),
        number_cell(row.residual, 1),
        Cell(" ".join(map(token_label, row.towards))),
        Cell(" ".join(map(token_label, row.away))),
    ]


def _finding(report: explain.SteerReport) -> str:
    """Return the sentence that says which layer to use."""
    best = max(report.layers, key=lambda row: (row.layer in report.chosen, row.accuracy, row.separation))
    count = sum(report.counts)
    right = f"{round(best.accuracy * count)} of {count} texts are on the right side"
    return (
        f"After layer {best.layer}, {right}; the direction is "
        f"{best.length / max(best.residual, 1e-12):.0%} as long as the residual stream."
    )
