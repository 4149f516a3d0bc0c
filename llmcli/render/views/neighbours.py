"""``neighbours``: a token's vector and the tokens whose vectors are most similar."""

from __future__ import annotations

from typing import TextIO

from llmcli import explain
from llmcli.render.marks import bar_cell
from llmcli.render.numbers import fixed
from llmcli.render.table import Cell, Column, number_cell, print_table
from llmcli.render.terminal import print_check, print_line
from llmcli.render.text import token_label


def print_neighbours(report: explain.NeighboursReport, stream: TextIO) -> None:
    """Print the whole view."""
    name = "".join(_term(term, first=n == 0) for n, term in enumerate(report.terms))
    print_line(f"neighbours: which tokens are most similar to {name} in {report.model}?", stream)
    numbers = ", ".join(fixed(value, 3) for value in report.vector)
    more = ", …" if report.size > len(report.vector) else ""
    print_line(f"{name} = [{numbers}{more}]: {report.size} numbers, length {fixed(report.length, 3)}", stream)
    listed = _listed(report)
    print_line(
        "Sorted by centered cosine: the mean of all tokens is subtracted first, since it is common to all. "
        f"1 is the same direction, 0 is unrelated. {listed}",
        stream,
        "dim",
    )
    print_nearest(report, stream)
    if report.baseline is not None:
        print_line(_finding(report), stream)
    print_check(report.check, stream)


def print_nearest(report: explain.NeighboursReport, stream: TextIO, *, top: int = 0) -> None:
    """Print the table of the ``top`` nearest tokens (0: all)."""
    columns = [
        Column("id", optional=2),
        Column("token", right=False),
        Column("centered cosine"),
        Column("", right=False, optional=3, plain="bar"),
        Column("raw cosine", optional=4),
    ]
    if report.baseline is not None:
        word = token_label(report.baseline)
        columns += [Column(f"with {word} alone"), Column("rank alone", optional=1)]
    shown = report.neighbours[: top or None]
    print_table(columns, [_row(row, report.baseline is not None) for row in shown], stream)


def _listed(report: explain.NeighboursReport) -> str:
    """Return the sentence that says whether the words given are in the table."""
    if len(report.terms) == 1:
        return "The word itself is not listed."
    if report.inputs:
        return "The words of the sum are listed, too; --no-inputs omits them."
    return "The words of the sum are not listed."


def _finding(report: explain.NeighboursReport) -> str:
    """Return what the arithmetic changed: the first token without it, and the tokens that it added and removed."""
    assert report.baseline is not None
    word, rows = token_label(report.baseline), [row for row in report.neighbours if not row.given]
    if not rows:
        return f"{word} alone gives {token_label(report.alone[0])} first." if report.alone else ""
    first, alone = rows[0], report.alone[: len(rows)]
    label, before = token_label(alone[0]), number_cell(first.alone).shown
    if first.piece.id == alone[0].id:
        found = f"{word} alone gives {label} first, too: the arithmetic changes its cosine from {before} to"
        found += f" {number_cell(first.centred).shown}."
    else:
        found = (
            f"{word} alone gives {label} first and {token_label(first.piece)} at rank {first.alone_rank} (0 is first)."
        )
    ids, before_ids = {row.piece.id for row in rows}, {piece.id for piece in alone}
    added = [token_label(row.piece) for row in rows if row.piece.id not in before_ids]
    dropped = [token_label(piece) for piece in alone if piece.id not in ids]
    changes = f"adds {' '.join(added)} and drops {' '.join(dropped)}" if added else "changes only the order"
    return f"{found} Of the first {len(alone)} other tokens, the arithmetic {changes}."


def _term(term: explain.Term, first: bool) -> str:
    sign = "" if first and term.sign > 0 else "- " if first else " + " if term.sign > 0 else " - "
    return sign + token_label(term.piece)


def _row(row: explain.Neighbour, compared: bool) -> list[Cell]:
    label = token_label(row.piece)
    cells = [
        Cell(str(row.piece.id)),
        Cell(f"{label} (given)" if row.given else label, label, "dim" if row.given else ""),
        number_cell(row.centred),
        bar_cell(max(row.centred, 0.0), 1.0),
        number_cell(row.cosine),
    ]
    if compared:
        rank = "–" if row.alone_rank is None else str(row.alone_rank)
        cells += [
            Cell("–", "") if row.alone is None else number_cell(row.alone),
            Cell(rank, "" if row.alone_rank is None else rank),
        ]
    return cells
