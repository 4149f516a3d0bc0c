"""``neighbours``: a token's vector and the tokens whose vectors are most similar."""

from __future__ import annotations

from typing import TextIO

from llmcli import explain
from llmcli.render.marks import bar_cell
from llmcli.render.table import Cell, Column, number_cell, print_table
from llmcli.render.terminal import print_check, print_line
from llmcli.render.text import token_label


def print_neighbours(report: explain.NeighboursReport, stream: TextIO) -> None:
    """Print the whole view."""
    name = "".join(_term(term, first=n == 0) for n, term in enumerate(report.terms))
    print_line(f"neighbours: which tokens are most similar to {name} in {report.model}?", stream)
    numbers = ", ".join(f"{value:.3f}" for value in report.vector)
    more = ", …" if report.size > len(report.vector) else ""
    print_line(f"{name} = [{numbers}{more}]: {report.size} numbers, length {report.length:.3f}", stream)
    columns = [
        Column("id", optional=1),
        Column("token", right=False),
        Column("centered"),
        Column("", right=False),
        Column("cosine", optional=2),
    ]
    print_table(columns, [_row(row) for row in report.neighbours], stream)
    listed = "words themselves are" if len(report.terms) > 1 else "word itself is"
    legend = "cosine: 1 is the same direction, 0 is unrelated. centered: after subtracting the mean of all tokens."
    print_line(f"{legend} Rows are sorted by it; the {listed} not listed.", stream, "dim")
    print_check(report.check, stream)


def _term(term: explain.Term, first: bool) -> str:
    sign = "" if first and term.sign > 0 else "- " if first else " + " if term.sign > 0 else " - "
    return sign + token_label(term.piece)


def _row(row: explain.Neighbour) -> list[Cell]:
    return [
        Cell(str(row.piece.id)),
        Cell(token_label(row.piece)),
        number_cell(row.centred),
        bar_cell(max(row.centred, 0.0), 1.0),
        number_cell(row.cosine),
    ]
