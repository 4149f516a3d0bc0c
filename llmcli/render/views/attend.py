"""``attend``: what one token looks at, and one head's attention pattern as a triangle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from llmcli import explain
from llmcli.render.marks import bar_cell, shade
from llmcli.render.numbers import full
from llmcli.render.table import Cell, Column, number_cell, print_table
from llmcli.render.terminal import console, drawn, print_check, print_line
from llmcli.render.text import counted, ranges, token_label

CELL = 4  # width of a weight in the triangle
SINK = 1.5  # the first token is an attention sink if it gets more than this many even shares of the attention
SINK_LEGEND = "sink: the weight of a learned score that each head has; it adds nothing."
NOT_WHY = "Attention shows where a head looks, not why. To see its effect, run llmcli why."


def print_attend(report: explain.AttendReport, stream: TextIO, *, top: int = 20, sink: bool = True) -> None:
    """Print the whole view: the ``top`` positions with the largest weights (0: all), position 0 only if ``sink``."""
    print_line(f"attend at position {report.position}, {token_label(report.at)}: what does it look at?", stream)
    columns = [
        Column("#"),
        Column("token", right=False),
        Column("strongest head", right=False, optional=2, plain=("layer", "head")),
        Column("weight", optional=3),
        Column("mean weight"),
        Column("", right=False, optional=4, plain="bar"),
        Column("moved", optional=1),
    ]
    print_table(columns, _rows(report, top, sink), stream)
    first = report.sources[0]
    if not sink:
        print_line(
            f"hidden: position 0, {token_label(first.piece)}, the attention sink, mean weight {first.mean:.4f}", stream
        )
    legend = f"mean weight: over {report.heads}. moved: average norm of what a head copies from that token."
    print_line(legend, stream, "dim")
    if report.sink is not None:
        print_line(SINK_LEGEND, stream, "dim")
    if report.without_attention:
        print_line(f"Layers without attention: {ranges(report.without_attention)}.", stream, "dim")
    print_line(NOT_WHY, stream, "dim")
    print_line(_finding(report, named=sink), stream)
    print_check(report.check, stream)


def _finding(report: explain.AttendReport, *, named: bool) -> str:
    """Return the sentence that says where the token looks most, and with ``named`` whether position 0 is a sink.

    Most attention often goes to the first token and to the token itself, so these are named only if nothing is between.
    """
    first, own, at = report.sources[0], report.sources[-1], token_label(report.at)
    if own is first:
        return f"{at} is the first token: it can only look at itself."
    most = max(report.sources[1:-1] or [own], key=lambda source: source.mean)
    where = "itself" if most is own else f"{token_label(most.piece)} (position {most.position})"
    more = [
        f"{name} ({number_cell(source.mean).shown})"
        for name, source in (("the first token", first), ("itself", own))
        if source.mean > most.mean
    ]
    found = (
        f"{'After ' + ' and '.join(more) + ', ' if more else ''}{at} looks most at {where}: mean weight "
        f"{number_cell(most.mean).shown}; L{most.layer}.H{most.head} gives it {number_cell(most.weight, 2).shown}."
    )
    if named and is_sink(report):
        found += f" Position 0, {token_label(first.piece)}, is the attention sink: heads that find nothing relevant"
        found += " look there. --no-sink hides it."
    return found


def is_sink(report: explain.AttendReport) -> bool:
    """Return whether position 0 is an attention sink: it gets over ``SINK`` times an even share of the attention."""
    return len(report.sources) > 1 and report.sources[0].mean > SINK / len(report.sources)


def _rows(report: explain.AttendReport, top: int, sink: bool) -> list[list[Cell]]:
    """Return rows for the positions with the largest mean weights, in text order, and one for the sum of the others."""
    candidates = report.sources if sink else report.sources[1:]
    shown = sorted(candidates, key=lambda source: -source.mean)[: top or None]
    longest = max((report.sink or 0.0, *(source.mean for source in shown)))
    named = is_sink(report)
    rows = [
        _row(source, longest, named and source.position == 0)
        for source in sorted(shown, key=lambda source: source.position)
    ]
    others = len(candidates) - len(shown)
    if others:
        mean = sum(source.mean for source in candidates) - sum(source.mean for source in shown)
        moved = sum(source.moved for source in candidates) - sum(source.moved for source in shown)
        name = Cell(counted(others, "other"), style="italic")
        rows.append(
            [Cell(""), name, Cell(""), Cell(""), number_cell(mean), bar_cell(mean, longest), number_cell(moved, 3)]
        )
    if report.sink is not None:
        mean, name = report.sink, Cell("sink", style="italic")
        rows.append(
            [Cell(""), name, Cell(""), Cell(""), number_cell(mean), bar_cell(mean, longest), number_cell(0.0, 3)]
        )
    return rows


def _row(source: explain.AttendedToken, longest: float, sink: bool) -> list[Cell]:
    label = token_label(source.piece)
    return [
        Cell(str(source.position)),
        Cell(f"{label} (sink)" if sink else label, label),
        Cell(f"L{source.layer}.H{source.head}", (str(source.layer), str(source.head))),
        number_cell(source.weight, 2, shade(source.weight)),
        number_cell(source.mean),
        bar_cell(source.mean, longest),
        number_cell(source.moved, 3),
    ]


def print_attention_pattern(report: explain.AttentionPattern, stream: TextIO) -> None:
    """Print one head's weights: all of them, or on a terminal the last rows, with the earlier positions summed."""
    print_line(f"attend, head L{report.layer}.H{report.head}: where does each token (row) look?", stream)
    if drawn(stream):
        _print_triangle(report, stream)
    else:
        columns = [Column("#"), Column("token"), *(Column(str(n)) for n in range(len(report.pieces)))]
        columns += [Column("sink")] * has_sink(report)
        print_table(columns, [_pattern_cells(row, len(report.pieces)) for row in report.rows], stream)
    print_line(NOT_WHY, stream, "dim")
    print_line(_pattern_finding(report), stream)
    print_check(report.check, stream)


def has_sink(report: explain.AttentionPattern) -> bool:
    """Return whether the head has a learned sink."""
    return report.rows[0].sink is not None


def _pattern_finding(report: explain.AttentionPattern) -> str:
    """Return the sentence that says where the head looks, on average over the rows."""
    name = f"L{report.layer}.H{report.head}"
    rows = [row.weights for row in report.rows if row.position >= 2]  # before position 2, two of the places coincide
    if not rows:
        return f"The text is too short to say what {name} looks for."
    shares = {
        place: sum(row[at] for row in rows) / len(rows)
        for place, at in (("the token itself", -1), ("the previous token", -2), ("the first token", 0))
    }
    if has_sink(report):
        shares["the sink"] = sum(row.sink or 0.0 for row in report.rows if row.position >= 2) / len(rows)
    shares["other tokens"] = 1 - sum(shares.values())
    most = max(shares, key=lambda place: shares[place])
    numbers = ", ".join(f"{place} {share:.2f}" for place, share in shares.items())
    return f"{name} looks most at {most}. Its attention on average, from position 2 on: {numbers}."


def _pattern_cells(row: explain.PatternRow, count: int) -> list[Cell]:
    later = [Cell("")] * (count - len(row.weights))
    return [
        Cell(str(row.position)),
        Cell(token_label(row.piece)),
        *(Cell(full(weight)) for weight in row.weights),
        *later,
        *([] if row.sink is None else [Cell(full(row.sink))]),
    ]


def _print_triangle(report: explain.AttentionPattern, stream: TextIO) -> None:
    """Print the weights in percent. Columns: position 0, the sum of the positions in between, one for each row."""
    target, digits = console(stream), len(str(report.rows[-1].position))
    longest = max(cell_len(token_label(row.piece)) for row in report.rows) + digits + 1
    name_width = min(longest, 20, target.width // 3) + 1
    # Two columns for the earlier positions, and two for the sink.
    rows = report.rows[-max((target.width - name_width) // CELL - 2 - 2 * has_sink(report), 1) :]
    first = rows[0].position
    names = [f"{row.position:>{digits}} {token_label(row.piece)}" for row in rows]
    between = ["0"] * (first > 0) + ["…"] * (first > 1)
    heading = "".join(f"{name:>{CELL}}" for name in [*between, *(str(row.position) for row in rows)])
    heading += "  sink" * has_sink(report)
    target.print(Text(" " * name_width + heading, style="bold"), soft_wrap=True)
    for name, row in zip(names, rows, strict=True):
        line = Text(set_cell_size(name, name_width))
        for weight in _columns(row.weights, first):
            line.append(f"{weight * 100:>{CELL - 1}.0f}", shade(weight) if weight >= 0.005 else "dim")
            line.append(" ")
        if row.sink is not None:
            line.append(" " * CELL * (len(rows[-1].weights) - len(row.weights)))  # below the heading
            line.append(f"{row.sink * 100:>5.0f}", shade(row.sink) if row.sink >= 0.005 else "dim")
        target.print(line, soft_wrap=True)
    summed = " …: sum of the positions in between." if first > 1 else ""
    print_line(f"Weights in percent. 0: below 0.5.{summed}", stream, "dim")


def _columns(weights: Sequence[float], first: int) -> list[float]:
    """Return a row's weights as the triangle shows them: before ``first``, position 0's and the sum of the others."""
    before = [weights[0]] * (first > 0) + [sum(weights[1:first])] * (first > 1)
    return [*before, *weights[first:]]
