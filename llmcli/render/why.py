"""A logit's parts for the eye: the strongest each way, what the others come to, and where attention took it from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from llmcli.render.marks import SIDES, signed_bar_cell
from llmcli.render.table import Cell, Column, number_cell, print_table
from llmcli.render.terminal import print_check, print_line
from llmcli.render.text import counted, token_label

if TYPE_CHECKING:
    from llmcli.explain.attribution import Contribution, SourceContribution, WhyReport


def print_why(report: WhyReport, stream: TextIO, *, top: int = 8) -> None:
    """The whole view, with the ``top`` parts and sources each way (0: all)."""
    token, other = (token_label(piece.text, piece.bytes) for piece in (report.token, report.other))
    at = token_label(report.at.text, report.at.bytes)
    print_line(f"why at {report.position}, {at}: what pushed {token} above {other}?", stream)
    columns = [
        Column("part", right=False),
        Column(f"to {token}", optional=2),
        Column(f"to {other}", optional=1),
        Column("difference"),
        Column(SIDES, right=False, optional=3, plain="sign"),
    ]
    print_table(columns, _part_rows(report, top), stream)
    print_line(f"\nwhat {report.heads} took from each position (the rest is by MLPs and the embedding):", stream)
    columns = [
        Column("#"),
        Column("token", right=False),
        Column("mostly by", right=False, optional=1),
        Column("difference"),
        Column(SIDES, right=False, optional=3, plain="sign"),
    ]
    print_table(columns, _source_rows(report.sources, top, report.heads), stream)
    capped = "" if report.softcap is None else f", after the softcap of {report.softcap:g}"
    print_line(f"the model's own logits: {report.logits[0]:.4f} and {report.logits[1]:.4f}{capped}", stream)
    print_line("Direct effects: what each part itself wrote, not what later parts made of it.", stream, "dim")
    print_check(report.check, stream)


def _part_rows(report: WhyReport, top: int) -> list[list[Cell]]:
    """The strongest for the token, the sum of those between, the strongest against it, the total."""
    ranked = sorted(report.parts, key=lambda part: -part.difference)
    most = max(abs(ranked[0].difference), abs(ranked[-1].difference))
    head, hidden, tail = _split(ranked, top)
    rows = [_part_row(part, most) for part in head]
    if hidden:
        rows.append([*_numbers(counted(len(hidden), "other"), hidden, "italic"), Cell("")])
    rows += [_part_row(part, most) for part in tail]
    return [*rows, [*_numbers("total", [report.total], "bold"), Cell("")]]


def _split(ranked: Sequence[Contribution], top: int) -> tuple[Sequence[Contribution], ...]:
    """The first ``top``, those between, the last ``top``; 0, or so few that none is between: all."""
    if top == 0 or len(ranked) <= 2 * top + 1:
        return ranked, [], []
    return ranked[:top], ranked[top:-top], ranked[-top:]


def _part_row(part: Contribution, most: float) -> list[Cell]:
    return [*_numbers(part.name, [part]), signed_bar_cell(part.difference, most)]


def _numbers(name: str, parts: Sequence[Contribution], style: str = "") -> list[Cell]:
    """What parts add together. Sums get no bar: it would be out of all proportion."""
    token, other = (
        number_cell(sum(values), 3, style) for values in ([p.token for p in parts], [p.other for p in parts])
    )
    return [Cell(name, style=style), token, other, _signed(sum(part.difference for part in parts), style)]


def _source_rows(sources: Sequence[SourceContribution], top: int, heads: str) -> list[list[Cell]]:
    """The strongest in the order of the text, then the sum of the others, and of all ``heads``."""
    shown = sorted(sources, key=lambda source: -abs(source.difference))[: 2 * top or None]
    most = abs(shown[0].difference)
    rows = [
        [
            Cell(str(source.position)),
            Cell(token_label(source.piece.text, source.piece.bytes)),
            Cell(f"L{source.layer}.H{source.head}"),
            _signed(source.difference),
            signed_bar_cell(source.difference, most),
        ]
        for source in sorted(shown, key=lambda source: source.position)
    ]
    total = sum(source.difference for source in sources)
    hidden = len(sources) - len(shown)
    if hidden:
        rest = total - sum(source.difference for source in shown)
        rows.append(
            [Cell(""), Cell(counted(hidden, "other"), style="italic"), Cell(""), _signed(rest, "italic"), Cell("")]
        )
    return [*rows, [Cell(""), Cell(heads, style="bold"), Cell(""), _signed(total, "bold"), Cell("")]]


def _signed(value: float, style: str = "") -> Cell:
    return Cell(f"{value:+.3f}", repr(value), style)
