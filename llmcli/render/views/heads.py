"""``heads``: a grid of all heads by their kind, and the best head of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich.text import Text

from llmcli import explain
from llmcli.render.marks import signed_bar_cell
from llmcli.render.table import Cell, Column, number_cell, print_table
from llmcli.render.terminal import console, drawn, print_check, print_line
from llmcli.render.text import counted

CLEAR, FAINT = 0.5, 0.25  # of a head's attention
# Each kind's letter in the grid, its color and its meaning.
MARKS = {
    "previous": ("P", "cyan", "the previous token"),
    "duplicate": ("D", "magenta", "an earlier occurrence of the same token"),
    "induction": ("I", "bold green", "what followed that occurrence"),
    "sink": ("S", "dim", "the first token, or a learned sink"),
}
NAMES = {"entropy": "broad"}


def print_heads(report: explain.HeadsReport, stream: TextIO) -> None:
    """Print the whole view: on a terminal a grid of letters, elsewhere a row of scores for each head."""
    print_line(f"heads: what does each attention head of {report.model} look at?", stream)
    if drawn(stream):
        _print_grid(report.heads, stream)
    else:
        _print_scores(report.heads, stream)
    print_line("", stream)
    _print_best(report, stream)
    tokens = counted(report.repeated, "random token")
    print_line(
        f"scores: on {report.sequences} texts of {tokens} and the same tokens again. change: in the loss on the second "
        "halves, in bits per token, without the head. control: without the head of its layer with the lowest score.",
        stream,
        "dim",
    )
    losses = f"loss, bits per token: first halves {report.first_loss:.2f}, second halves {report.second_loss:.2f}"
    print_line(losses + ("" if report.text_loss is None else f", your text {report.text_loss:.2f}"), stream)
    print_line(_finding(report), stream)
    print_check(report.check, stream)


def _print_grid(heads: Sequence[explain.ScoredHead], stream: TextIO) -> None:
    target, layers = console(stream), sorted({each.layer for each in heads})
    count = max(each.head for each in heads) + 1
    digits = len(str(count - 1))
    names = [f"layer {layer}" for layer in layers]
    width = max(map(len, names)) + 1
    heading = " ".join(f"{head:>{digits}}" for head in range(count))
    target.print(Text(" " * width + heading, style="bold"), soft_wrap=True)
    for layer, name in zip(layers, names, strict=True):
        line = Text(f"{name:<{width}}")
        for each in (each for each in heads if each.layer == layer):
            letter, style = _mark(each.repeated)
            line.append(f"{letter:>{digits}} ", style)
        target.print(line, soft_wrap=True)
    for letter, style, meaning in MARKS.values():
        target.print(Text.assemble((letter, style), (f" {meaning}", "dim")), soft_wrap=True)
    print_line(
        f"A letter: at least {CLEAR:.0%} of the head's attention goes there; a small letter: {FAINT:.0%}. ·: less.",
        stream,
        "dim",
    )


def _mark(scores: explain.HeadScores) -> tuple[str, str]:
    """Return the letter of what the head looks at most, and its style."""
    kind = max(MARKS, key=lambda kind: getattr(scores, kind) or 0.0)
    share, (letter, style, _) = getattr(scores, kind) or 0.0, MARKS[kind]
    if share >= FAINT:
        return (letter, style) if share >= CLEAR else (letter.lower(), style)
    return "·", "dim"


def _print_scores(heads: Sequence[explain.ScoredHead], stream: TextIO) -> None:
    kinds = [*MARKS, "entropy"]
    given = heads[0].text is not None
    columns = [Column("layer"), Column("head"), *(Column(kind) for kind in kinds)]
    columns += [Column(f"{kind} in text") for kind in kinds] * given
    rows = []
    for each in heads:
        row = [Cell(str(each.layer)), Cell(str(each.head))]
        for scores in (each.repeated, each.text):
            row += [] if scores is None else [number_cell(getattr(scores, kind)) for kind in kinds]
        rows.append(row)
    print_table(columns, rows, stream)


def _print_best(report: explain.HeadsReport, stream: TextIO) -> None:
    columns = [
        Column("kind", right=False),
        Column("head", right=False),
        Column("score"),
        Column("in your text"),
        Column("change, bits"),
        Column("", right=False, optional=3, plain="bar"),
        Column("control", optional=1),
        Column("change of your text", optional=2),
    ]
    longest = max(abs(each.change) for each in report.best)
    rows = []
    for each in report.best:
        own = next(row for row in report.heads if (row.layer, row.head) == (each.layer, each.head))
        rows.append(
            [
                Cell(NAMES.get(each.kind, each.kind)),
                Cell(f"L{each.layer}.H{each.head}", f"{each.layer}.{each.head}"),
                number_cell(each.score, 2),
                number_cell(None if own.text is None else getattr(own.text, each.kind), 2),
                number_cell(each.change, 3),
                signed_bar_cell(each.change, longest),
                number_cell(each.control_change, 3),
                number_cell(each.text_change, 3),
            ]
        )
    if report.text_tokens is None:
        columns, rows = [*columns[:3], *columns[4:-1]], [[*row[:3], *row[4:-1]] for row in rows]
    print_table(columns, rows, stream)


def _finding(report: explain.HeadsReport) -> str:
    """Return the sentence that says whether the model copies, and what its best induction head has to do with it."""
    best = next(each for each in report.best if each.kind == "induction")
    name, gain = f"L{best.layer}.H{best.head}", report.first_loss - report.second_loss
    if best.score < FAINT or gain < 1:
        return f"No head is clearly an induction head: the best, {name}, gives {best.score:.2f} of its attention there."
    others = "" if best.control_change is None else f" (without the control, {best.control_change:+.2f})"
    return (
        f"The model predicts repeated tokens {gain:.1f} bits better. {name} looks at what followed the last time, with "
        f"{best.score:.2f} of its attention; without it, the loss changes by {best.change:+.2f} bits{others}."
    )
