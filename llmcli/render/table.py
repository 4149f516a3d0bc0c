"""Tables in two forms: boxed and coloured to fit a terminal, or tab-separated with full precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from rich import box
from rich.cells import cell_len
from rich.table import Table as RichTable
from rich.text import Text

from llmcli.render.terminal import console, printable, styled

LEAST = 4  # cells of a column of text, which goes on in the next line: with fewer it would be gone


@dataclass(frozen=True)
class Column:
    """``optional`` columns are left out where the terminal is too narrow, the highest number first.

    ``plain`` is its name where there is no terminal (the same, if not given).
    """

    name: str
    right: bool = True
    optional: int = 0
    plain: str | None = None


@dataclass(frozen=True)
class Cell:
    """``shown`` in a terminal, in ``style``; ``plain`` elsewhere (the same, if not given)."""

    shown: str
    plain: str | None = None
    style: str = ""


def number(value: float | None, digits: int = 4, style: str = "") -> Cell:
    """A number rounded for the eye and in full for programs; nothing for None."""
    return Cell("", "") if value is None else Cell(f"{value:.{digits}f}", repr(value), style)


def probability(value: float, style: str = "") -> Cell:
    """A probability: four decimals, but never 0.0000 for one above zero nor 1.0000 for one below one."""
    shown = f"{value:.4f}"
    if shown == "0.0000" and value > 0:
        shown = f"{value:.0e}"
    elif shown == "1.0000" and value < 1:
        shown = ">.9999"
    return Cell(shown, repr(value), style)


UNKNOWN = Cell("–", "")  # a column of nothing else is left out on a terminal


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], stream: TextIO) -> None:
    """Write the table in the form that suits the stream."""
    if not styled(stream):
        lines = [[column.name if column.plain is None else column.plain for column in columns]]
        lines += [[cell.shown if cell.plain is None else cell.plain for cell in row] for row in rows]
        stream.writelines("\t".join(printable(part, stream) for part in line) + "\n" for line in lines)
        stream.flush()
        return
    known = [n for n in range(len(columns)) if not rows or any(row[n] != UNKNOWN for row in rows)]
    columns, rows = [columns[n] for n in known], [[row[n] for n in known] for row in rows]
    target = console(stream)
    widths = [max(cell_len(text) for text in (c.name, *(row[n].shown for row in rows))) for n, c in enumerate(columns)]
    kept = _fitting(columns, widths, target.width)
    least = [width if column.right else min(width, LEAST) for column, width in zip(columns, widths, strict=True)]
    # Where not even that has room, the lines go on below: better than numbers cut, or tokens left out.
    target.width = max(target.width, sum(least[n] + 2 for n in kept))
    table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for n in kept:
        right, name = columns[n].right, printable(columns[n].name, stream)
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=right, min_width=least[n])
    for row in rows:
        table.add_row(*(Text(printable(row[n].shown, stream), style=row[n].style) for n in kept))
    target.print(table, crop=False)


def _fitting(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int]:
    """Which columns fit into ``width`` cells, with two between each; the others are optional ones."""
    kept = list(range(len(columns)))
    while sum(widths[n] + 2 for n in kept) > width:
        droppable = [n for n in kept if columns[n].optional]
        if not droppable:
            break
        kept.remove(max(droppable, key=lambda n: columns[n].optional))
    return kept
