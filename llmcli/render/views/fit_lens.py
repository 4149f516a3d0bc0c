"""``fit-lens``: what a fitted lens gains over the plain one, by layer, on held-out text."""

from __future__ import annotations

from typing import TextIO

from llmcli import explain
from llmcli.render.table import Cell, Column, number_cell, print_table
from llmcli.render.terminal import print_check, print_line


def print_fit_lens(report: explain.FitLensReport, stream: TextIO) -> None:
    """Print the divergences of both lenses after each layer."""
    print_line(f"{report.kind} lens of {report.model}: how close is it to the final prediction?", stream)
    columns = [Column("after", right=False), Column("plain KL, bits"), Column(f"{report.kind} KL, bits")]
    rows = [
        [
            Cell(_place(row)),
            number_cell(row.plain_kl, 2),
            number_cell(row.kl, 2),
        ]
        for row in report.layers
    ]
    print_table(columns, rows, stream)
    fitted = f"fitted on {report.tokens} tokens, measured on {report.held_out} tokens that were held out"
    print_line(f"KL: divergence from the final prediction; {fitted}.", stream, "dim")
    worse = [_place(row) for row in report.layers if row.kl > row.plain_kl]
    if worse:
        print_line(f"Further from it than the plain lens: after {', '.join(worse)}.", stream, "yellow")
    print_check(report.check, stream)


def _place(row: explain.FittedLayer) -> str:
    return "embedding" if row.layer is None else f"layer {row.layer}"
