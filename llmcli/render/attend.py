"""Attention for the eye: what one token looks at, and one head's pattern as a triangle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from llmcli.render.marks import bar_cell, shade
from llmcli.render.table import Cell, Column, number_cell, print_table
from llmcli.render.terminal import console, print_check, print_line, styled
from llmcli.render.text import counted, token_label

if TYPE_CHECKING:
    from llmcli.explain.attention import AttendedToken, AttendReport, AttentionPattern, PatternRow
    from llmcli.explain.report import Check, VocabEntry

CELL = 4  # columns of the terminal a weight of the triangle takes
NOT_WHY = "Attention says where a head looks, not why; what came of it, llmcli why tells."


def print_attend(report: AttendReport, stream: TextIO, *, top: int = 20, sink: bool = True) -> None:
    """The whole view, with the ``top`` positions (0: all); position 0 only if ``sink``."""
    print_line(f"attend at {report.position}, {_named(report.at)}: what does it look at, in {report.heads}?", stream)
    columns = [
        Column("#"),
        Column("token", right=False),
        Column("strongest head", right=False, optional=2),
        Column("its weight", optional=3),
        Column("mean"),
        Column("", right=False, optional=4, plain="bar"),
        Column("moved", optional=1),
    ]
    print_table(columns, _rows(report.sources, top, sink), stream)
    if not sink:
        first = report.sources[0]
        print_line(f"not shown: position 0, {_named(first.piece)}, the sink, with a mean of {first.mean:.4f}", stream)
    print_line("mean: of all their weights. moved: how much a head takes from there, mean length.", stream, "dim")
    _print_end(report.check, stream)


def _print_end(check: Check, stream: TextIO) -> None:
    print_line(NOT_WHY, stream, "dim")
    print_check(check, stream)


def _named(piece: VocabEntry) -> str:
    return token_label(piece.text, piece.bytes)


def _rows(sources: Sequence[AttendedToken], top: int, sink: bool) -> list[list[Cell]]:
    """Those with the largest means, in the order of the text, and the sum of the others."""
    candidates = sources if sink else sources[1:]
    shown = sorted(candidates, key=lambda source: -source.mean)[: top or None]
    most = max((source.mean for source in shown), default=0.0)
    rows = [_row(source, most) for source in sorted(shown, key=lambda source: source.position)]
    others = len(candidates) - len(shown)
    if others:
        mean = sum(source.mean for source in candidates) - sum(source.mean for source in shown)
        moved = sum(source.moved for source in candidates) - sum(source.moved for source in shown)
        name = Cell(f"{counted(others, 'other')} together", style="italic")
        rows.append(
            [Cell(""), name, Cell(""), Cell(""), number_cell(mean), bar_cell(mean, most), number_cell(moved, 3)]
        )
    return rows


def _row(source: AttendedToken, most: float) -> list[Cell]:
    return [
        Cell(str(source.position)),
        Cell(_named(source.piece)),
        Cell(f"L{source.layer}.H{source.head}"),
        Cell(f"{source.weight:.2f}", repr(source.weight), shade(source.weight)),
        number_cell(source.mean),
        bar_cell(source.mean, most),
        number_cell(source.moved, 3),
    ]


def print_attention_pattern(report: AttentionPattern, stream: TextIO) -> None:
    """The triangle of the last positions; in a terminal with what stands before them summed."""
    print_line(f"attend, head L{report.layer}.H{report.head}: where does each token (a row) look?", stream)
    if styled(stream):
        _print_triangle(report, stream)
        print_line("In per cent; · is less than 1, … the positions in between together.", stream, "dim")
    else:
        columns = [Column("#"), Column("token"), *(Column(str(n)) for n in range(len(report.pieces)))]
        print_table(columns, [_grid_cells(row, len(report.pieces)) for row in report.rows], stream)
    _print_end(report.check, stream)


def _grid_cells(row: PatternRow, count: int) -> list[Cell]:
    ahead = [Cell("")] * (count - len(row.weights))
    return [Cell(str(row.position)), Cell(_named(row.piece)), *(Cell(repr(weight)) for weight in row.weights), *ahead]


def _print_triangle(report: AttentionPattern, stream: TextIO) -> None:
    """Weights in per cent. Columns: the first position, those between, then one for each row."""
    target, digits = console(stream), len(str(report.rows[-1].position))
    most = max(cell_len(_named(row.piece)) for row in report.rows) + digits + 1
    wide = min(most, 20, target.width // 3) + 1
    rows = report.rows[-max((target.width - wide) // CELL - 2, 1) :]  # two columns may be for what is before
    first = rows[0].position
    names = [f"{row.position:>{digits}} {_named(row.piece)}" for row in rows]
    between = ["0"] * (first > 0) + ["…"] * (first > 1)
    heading = "".join(f"{name:>{CELL}}" for name in [*between, *(str(row.position) for row in rows)])
    target.print(Text(" " * wide + heading, style="bold"), soft_wrap=True)
    for name, row in zip(names, rows, strict=True):
        line = Text(set_cell_size(name, wide))
        for weight in _columns(row.weights, first):
            line.append(f"{weight * 100:>{CELL - 1}.0f}" if weight >= 0.005 else f"{'·':>{CELL - 1}}", shade(weight))
            line.append(" ")
        target.print(line, soft_wrap=True)


def _columns(weights: Sequence[float], first: int) -> list[float]:
    """A row's weights as the triangle shows them: those before ``first`` as the sink's and the sum of the others."""
    before = [weights[0]] * (first > 0) + [sum(weights[1:first])] * (first > 1)
    return [*before, *weights[first:]]
