"""Positions for the eye: how fast they turn, and what order changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from llmcli.render.check import print_check
from llmcli.render.table import Cell, Column, number, print_table, probability
from llmcli.render.terminal import label, say

if TYPE_CHECKING:
    from llmcli.explain.position import Answer, PositionReport


def print_position(report: PositionReport, stream: TextIO) -> None:
    """The pairs of a head that turn fastest, in the middle and slowest; then the answers in both orders."""
    if report.turns:
        columns = [Column("pair"), Column("degrees a token"), Column("tokens a turn")]
        rows = [[Cell(str(turn.pair)), number(turn.degrees, 3), number(turn.period, 1)] for turn in report.turns]
        print_table(columns, rows, stream)
        say("", stream)
    columns = [Column("the same tokens", right=False), Column("next would be", right=False), Column("p")]
    print_table(columns, [_row("in order", report.in_order), _row("in reverse", report.reversed)], stream)
    print_check(report.check, stream)


def _row(name: str, answer: Answer) -> list[Cell]:
    return [Cell(name), Cell(label(answer.piece.text, answer.piece.bytes)), probability(answer.p)]
