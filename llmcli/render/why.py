"""A logit's parts for the eye: the strongest each way, what the others come to, and where attention took it from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from llmcli.render.bars import SIDES, signed_bar
from llmcli.render.check import print_check
from llmcli.render.table import Cell, Column, number, print_table
from llmcli.render.terminal import label, say

if TYPE_CHECKING:
    from llmcli.explain.why import Part, Source, WhyReport


def print_why(report: WhyReport, stream: TextIO, *, top: int, heads: str) -> None:
    """The whole view, with the ``top`` parts and sources each way (0: all); ``heads`` names whose sources they are."""
    token, other = (label(piece.text, piece.bytes) for piece in (report.token, report.other))
    at = label(report.at.text, report.at.bytes)
    say(f"why at {report.position}, {at}: what pushed {token} above {other}?", stream)
    columns = [
        Column("part", right=False),
        Column(f"to {token}", optional=2),
        Column(f"to {other}", optional=1),
        Column("difference"),
        Column(SIDES, right=False, plain="sign"),
    ]
    print_table(columns, _part_rows(report, top), stream)
    say(f"\nwhat {heads} took from each position:", stream)
    columns = [
        Column("#"),
        Column("token", right=False),
        Column("mostly by", right=False, optional=1),
        Column("difference"),
        Column(SIDES, right=False, plain="sign"),
    ]
    print_table(columns, _source_rows(report.sources, top), stream)
    capped = "" if report.softcap is None else f", after the softcap of {report.softcap:g}"
    say(f"the model's own logits: {report.logits[0]:.4f} and {report.logits[1]:.4f}{capped}", stream)
    say("Direct effects: what each part itself wrote, not what later parts made of it.", stream, "dim")
    print_check(report.check, stream)


def _part_rows(report: WhyReport, top: int) -> list[list[Cell]]:
    """The strongest for the token, the sum of those between, the strongest against it, the total."""
    ranked = sorted(report.parts, key=lambda part: -part.difference)
    most = max(abs(ranked[0].difference), abs(ranked[-1].difference))
    head, hidden, tail = _split(ranked, top)
    rows = [_part_row(part, most) for part in head]
    if hidden:
        token, other, difference = (
            sum(values) for values in zip(*((p.token, p.other, p.difference) for p in hidden), strict=True)
        )
        rows.append(_sum_row(_others(len(hidden)), token, other, difference, most, "italic"))
    rows += [_part_row(part, most) for part in tail]
    total = report.total
    return [*rows, _sum_row("total", total.token, total.other, total.difference, most, "bold")]


def _split(ranked: Sequence[Part], top: int) -> tuple[Sequence[Part], Sequence[Part], Sequence[Part]]:
    """The first ``top``, those between, the last ``top``; 0, or so few that none is between: all."""
    if top == 0 or len(ranked) <= 2 * top + 1:
        return ranked, [], []
    return ranked[:top], ranked[top:-top], ranked[-top:]


def _part_row(part: Part, most: float) -> list[Cell]:
    return _sum_row(part.name, part.token, part.other, part.difference, most, "")


def _sum_row(name: str, token: float, other: float, difference: float, most: float, style: str) -> list[Cell]:
    numbers = [number(token, 3, style), number(other, 3, style), _signed(difference, style)]
    return [Cell(name, style=style), *numbers, signed_bar(difference, most)]


def _source_rows(sources: Sequence[Source], top: int) -> list[list[Cell]]:
    """The strongest in the order of the text, then the sum of the others."""
    shown = sorted(sources, key=lambda source: -abs(source.difference))[: 2 * top or None]
    most = abs(shown[0].difference)
    rows = [
        [
            Cell(str(source.position)),
            Cell(label(source.piece.text, source.piece.bytes)),
            Cell(f"L{source.layer}.H{source.head}"),
            _signed(source.difference),
            signed_bar(source.difference, most),
        ]
        for source in sorted(shown, key=lambda source: source.position)
    ]
    if len(shown) < len(sources):
        rest = sum(s.difference for s in sources) - sum(s.difference for s in shown)
        rows.append(
            [Cell(""), Cell(_others(len(sources) - len(shown))), Cell(""), _signed(rest), signed_bar(rest, most)]
        )
    total = sum(source.difference for source in sources)
    return [*rows, [Cell(""), Cell("total", style="bold"), Cell(""), _signed(total, "bold"), signed_bar(total, most)]]


def _others(count: int) -> str:
    return f"{count} other{'s' * (count > 1)}"


def _signed(value: float, style: str = "") -> Cell:
    return Cell(f"{value:+.3f}", repr(value), style)
