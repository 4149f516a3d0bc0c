"""The layers for the eye: a row each, and the target's way through them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from llmcli.render.marks import probability_band, sparkline
from llmcli.render.table import Cell, Column, number_cell, print_table, probability_cell
from llmcli.render.terminal import print_check, print_line
from llmcli.render.text import token_label

if TYPE_CHECKING:
    from llmcli.explain.logit_lens import LensReport, LensRow


def print_lens(report: LensReport, stream: TextIO) -> None:
    """The whole view."""
    at, target = token_label(report.at.text, report.at.bytes), token_label(report.target.text, report.target.bytes)
    print_line(f"lens at {report.position}, {at}: what would follow if the model stopped after each layer?", stream)
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
    print_line(f"p of {target} through the layers: {rise} (the highest is {highest:.4g})", stream)
    print_line(
        "rank: 0 is the favourite. lost: how far a layer's guess is from the last (KL divergence).", stream, "dim"
    )
    print_check(report.check, stream)


def _row(row: LensRow, arrived: bool) -> list[Cell]:
    style, sign = probability_band(row.p_top)
    return [
        Cell("embedding" if row.layer is None else f"layer {row.layer}"),
        Cell(token_label(row.top.text, row.top.bytes), style="bold green" if arrived else style),
        probability_cell(row.p_top),
        Cell(sign, style=style),
        probability_cell(row.p),
        Cell(str(row.rank)),
        number_cell(row.entropy, 2),
        number_cell(row.kl, 2),
    ]
