"""``lens``: what the model would predict after each layer, and the target's rank through the layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TextIO

from llmcli import explain
from llmcli.render.marks import print_legend, probability_band, sparkline
from llmcli.render.table import Cell, Column, number_cell, print_table, probability_cell
from llmcli.render.terminal import print_check, print_line
from llmcli.render.text import token_label


def print_lens(report: explain.LensReport, stream: TextIO, *, top: int = 0) -> None:
    """Print the whole view, or the first, the last and the layers between that are ``top`` rows (0: all)."""
    at, target = token_label(report.at), token_label(report.target)
    fitted = report.lens != "plain"
    name = f"{report.lens} lens" if fitted else "lens"
    print_line(f"{name} at position {report.position}, {at}: what would the model predict after each layer?", stream)
    columns = [
        Column("after", right=False),
        Column("top token", right=False),
        Column("p", optional=2),
        Column("", right=False, optional=3, plain="sign"),
        Column(f"p({target})"),
        Column("rank", optional=1),
        Column("entropy, bits", optional=5),
        Column("KL, bits", optional=4),
    ]
    if fitted:
        columns.append(Column("plain KL", optional=4))
    rows = [_row(row, row.top.id == report.target.id) for row in spread(report.rows, top)]
    for row, cells in zip(spread(report.rows, top), rows, strict=True):
        if fitted:
            cells.append(number_cell(row.plain_kl, 2))
    print_table(columns, rows, stream)
    ranks = [row.rank for row in report.rows]
    rise = sparkline([-math.log(rank + 1) for rank in ranks])
    print_line(f"rank of {target} by layer, log scale: {rise} (from {max(ranks)} to {min(ranks)})", stream)
    plain = " plain KL: of the plain lens." if fitted else ""
    print_line(
        f"rank: of {target}; 0 is the top token. KL: divergence from the final prediction.{plain}", stream, "dim"
    )
    print_legend(stream)
    print_check(report.check, stream)


def spread(rows: Sequence[explain.LensRow], count: int) -> list[explain.LensRow]:
    """Return ``count`` rows at even distances, the first and the last among them; all if ``count`` is 0."""
    if not count or count >= len(rows):
        return list(rows)
    return [rows[round(n * (len(rows) - 1) / (count - 1))] for n in range(count)]


def _row(row: explain.LensRow, is_target: bool) -> list[Cell]:
    style, sign = probability_band(row.p_top)
    return [
        Cell("embedding" if row.layer is None else f"layer {row.layer}"),
        Cell(token_label(row.top), style="bold green" if is_target else style),
        probability_cell(row.p_top),
        Cell(sign, style=style),
        _p(row),
        Cell(str(row.rank)),
        number_cell(row.entropy, 2),
        number_cell(row.kl, 2),
    ]


def _p(row: explain.LensRow) -> Cell:
    """Return the target's probability."""
    return probability_cell(row.p, logprob=row.logprob)
