"""A vector and its neighbours for the eye."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from llmcli.render.marks import bar_cell
from llmcli.render.table import Cell, Column, number_cell, print_table
from llmcli.render.terminal import print_check, print_line
from llmcli.render.text import token_label

if TYPE_CHECKING:
    from llmcli.explain.embeddings import Neighbour, NeighboursReport, Term

LEGEND = (
    "cosine: 1 for one direction, 0 for nothing in common. centred: the same once the mean of all tokens, "
    "which they share, is taken away; the rows are sorted by it."
)


def print_neighbours(report: NeighboursReport, stream: TextIO) -> None:
    """The whole view."""
    name = "".join(_term(term, first=n == 0) for n, term in enumerate(report.terms))
    print_line(f"neighbours: which tokens are most like {name} to {report.model}?", stream)
    numbers = ", ".join(f"{value:.3f}" for value in report.vector)
    more = ", …" if report.size > len(report.vector) else ""
    print_line(f"{name} = [{numbers}{more}]: {report.size} numbers, length {report.length:.3f}", stream)
    columns = [
        Column("id", optional=1),
        Column("token", right=False),
        Column("centred"),
        Column("", right=False),
        Column("cosine", optional=2),
    ]
    print_table(columns, [_row(row) for row in report.neighbours], stream)
    left = "words themselves are" if len(report.terms) > 1 else "word itself is"
    print_line(LEGEND + f" The {left} left out.", stream, "dim")
    print_check(report.check, stream)


def _term(term: Term, first: bool) -> str:
    sign = "" if first and term.sign > 0 else "- " if first else " + " if term.sign > 0 else " - "
    return sign + token_label(term.piece.text, term.piece.bytes)


def _row(row: Neighbour) -> list[Cell]:
    return [
        Cell(str(row.piece.id)),
        Cell(token_label(row.piece.text, row.piece.bytes)),
        number_cell(row.centred),
        bar_cell(max(row.centred, 0.0), 1.0),
        number_cell(row.cosine),
    ]
