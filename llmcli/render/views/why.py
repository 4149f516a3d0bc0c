"""``why``: the components of a logit difference, and the source tokens that attention took them from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from llmcli import explain
from llmcli.render.marks import signed_bar_cell, signed_bar_heading
from llmcli.render.numbers import fixed, full
from llmcli.render.table import Cell, Column, number_cell, print_table
from llmcli.render.terminal import print_check, print_line
from llmcli.render.text import counted, token_label

SIDES = signed_bar_heading("against", "for")


def print_why(report: explain.WhyReport, stream: TextIO, *, top: int = 8) -> None:
    """Print the whole view: the ``top`` components and sources each way (0: all)."""
    token, other = (token_label(piece) for piece in (report.token, report.other))
    at = token_label(report.at)
    print_line(f"why at position {report.position}, {at}: what pushed {token} above {other}?", stream)
    print_parts(report, stream, top=top)
    if report.sources:
        _print_sources(report, stream, top=top)
    softcap = "" if report.softcap is None else f", after the softcap of {report.softcap:g}"
    first, second = (fixed(logit, 4) for logit in report.logits)
    print_line(f"the model's logits: {token} {first}, {other} {second}{softcap}", stream)
    print_why_end(report, stream)


def _print_sources(report: explain.WhyReport, stream: TextIO, *, top: int) -> None:
    print_line(f"\n{report.heads}, by source token (the other components add the rest):", stream)
    columns = [
        Column("#"),
        Column("token", right=False),
        Column("strongest head", right=False, optional=1, plain=("layer", "head")),
        Column("difference"),
        Column(SIDES, right=False, optional=3, plain="sign"),
    ]
    print_table(columns, _source_rows(report.sources, top, report.heads), stream)


def print_parts(report: explain.WhyReport, stream: TextIO, *, top: int) -> None:
    """Print the table of the ``top`` components each way (0: all), and the total."""
    token, other = (token_label(piece) for piece in (report.token, report.other))
    columns = [
        Column("component", right=False),
        Column(f"to {token}", optional=2),
        Column(f"to {other}", optional=1),
        Column("difference"),
        Column(SIDES, right=False, optional=3, plain="sign"),
    ]
    print_table(columns, _part_rows(report, top), stream)


def print_why_end(report: explain.WhyReport, stream: TextIO) -> None:
    """Print what the numbers leave out, the sentence that names the finding, and the check."""
    print_line("Direct effects only: what each component adds, not how later ones use it.", stream, "dim")
    print_line(_finding(report), stream)
    print_check(report.check, stream)


def _finding(report: explain.WhyReport) -> str:
    """Return the sentence that names the component that decides most, and the head, with what it reads."""
    part, head, total = report.strongest, report.strongest_head, report.total.difference
    token, other = (token_label(piece) for piece in (report.token, report.other))
    pair = f"{token if total >= 0 else other} against {other if total >= 0 else token}"
    found = f"{part.name} gives {fixed(part.difference, 2, '+')} of {fixed(total, 2, '+')}"
    if head is None:
        return f"{found}: the most for {pair}."
    if part.name == head.name:
        return f"{found}, {_reading(head)}: the most for {pair}."
    of_heads = f"Of the heads, {head.name} gives the most: {fixed(head.difference, 2, '+')}, {_reading(head)}."
    return f"{found}: the most for {pair}. {of_heads}"


def _reading(head: explain.StrongestPart) -> str:
    assert head.piece is not None
    assert head.from_position is not None
    return f"{fixed(head.from_position, 2, '+')} of it by reading {token_label(head.piece)} (position {head.position})"


def _part_rows(report: explain.WhyReport, top: int) -> list[list[Cell]]:
    """Return rows for the components most in favor, the sum of the middle ones, the most against, and the total."""
    ranked = sorted(report.parts, key=lambda part: -part.difference)
    longest = max(abs(ranked[0].difference), abs(ranked[-1].difference))
    head, hidden, tail = _split(ranked, top)
    rows = [_part_row(part, longest) for part in head]
    if hidden:
        rows.append([*_numbers(counted(len(hidden), "other"), hidden, "italic"), Cell("")])
    rows += [_part_row(part, longest) for part in tail]
    return [*rows, [*_numbers("total", [report.total], "bold"), Cell("")]]


def _split(ranked: Sequence[explain.Contribution], top: int) -> tuple[Sequence[explain.Contribution], ...]:
    """Return the first ``top``, the middle and the last ``top``; all of them first if ``top`` is 0 or covers them."""
    if top == 0 or len(ranked) <= 2 * top + 1:
        return ranked, [], []
    return ranked[:top], ranked[top:-top], ranked[-top:]


def _part_row(part: explain.Contribution, longest: float) -> list[Cell]:
    return [*_numbers(part.name, [part]), signed_bar_cell(part.difference, longest)]


def _numbers(name: str, parts: Sequence[explain.Contribution], style: str = "") -> list[Cell]:
    """Return the name and the summed numbers of ``parts``. A sum gets no bar, which would dwarf the others."""
    token, other = (
        number_cell(sum(values), 3, style) for values in ([p.token for p in parts], [p.other for p in parts])
    )
    return [Cell(name, style=style), token, other, _signed(sum(part.difference for part in parts), style)]


def _source_rows(sources: Sequence[explain.SourceContribution], top: int, heads: str) -> list[list[Cell]]:
    """Return rows for the strongest sources in text order, the sum of the others, and the total of ``heads``."""
    shown = sorted(sources, key=lambda source: -abs(source.difference))[: 2 * top or None]
    longest = abs(shown[0].difference)
    rows = [
        [
            Cell(str(source.position)),
            Cell(token_label(source.piece)),
            Cell(f"L{source.layer}.H{source.head}", (str(source.layer), str(source.head))),
            _signed(source.difference),
            signed_bar_cell(source.difference, longest),
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
    return Cell(fixed(value, 3, "+"), full(value), style)
