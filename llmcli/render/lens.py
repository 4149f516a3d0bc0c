"""The layers for the eye: a row each, and the target's way through them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from llmcli.render.bars import sparkline
from llmcli.render.check import print_check
from llmcli.render.table import Cell, Column, number, print_table, probability
from llmcli.render.terminal import band, label, say

if TYPE_CHECKING:
    from llmcli.explain.lens import LensReport, LensRow


def print_lens(report: LensReport, stream: TextIO) -> None:
    """The whole view."""
    at, target = label(report.at.text, report.at.bytes), label(report.target.text, report.target.bytes)
    say(f"lens at {report.position}, {at}: what would follow if the model stopped after each layer?", stream)
    columns = [
        Column("after", right=False),
        Column("favourite", right=False),
        Column("p", optional=2),
        Column("", right=False, optional=3, plain="sign"),
        Column(f"p of {target}"),
        Column("its rank", optional=1),
        Column("entropy, bits", optional=5),
        Column("lost, bits", optional=4),
    ]
    print_table(columns, [_row(row, row.top.id == report.target.id) for row in report.rows], stream)
    highest = max(row.p for row in report.rows)
    rise = sparkline([row.p / highest if highest else 0.0 for row in report.rows])
    say(f"p of {target} through the layers: {rise} (the highest is {highest:.4g})", stream)
    say("rank: 0 is the favourite. lost: how far a layer's guess is from the last (KL divergence).", stream, "dim")
    print_check(report.check, stream)


def _row(row: LensRow, arrived: bool) -> list[Cell]:
    style, sign = band(row.p_top)
    return [
        Cell("embedding" if row.layer is None else f"layer {row.layer}"),
        Cell(label(row.top.text, row.top.bytes), style="bold green" if arrived else style),
        probability(row.p_top),
        Cell(sign, style=style),
        probability(row.p),
        Cell(str(row.rank)),
        number(row.entropy, 2),
        number(row.kl, 2),
    ]
