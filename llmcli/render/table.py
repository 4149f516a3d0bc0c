"""Tables in two forms: boxed and coloured to fit a terminal, or tab-separated with full precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

    Those below 0 go only where it does not help that the text of others goes on in the next line.
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


def number_cell(value: float | None, digits: int = 4, style: str = "") -> Cell:
    """A number rounded for the eye and in full for programs; nothing for None."""
    return Cell("", "") if value is None else Cell(f"{value:.{digits}f}", repr(value), style)


def probability_cell(value: float, style: str = "") -> Cell:
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
    widths, least = _sizes(columns, rows)
    kept = _fitting(columns, widths, least, target.width)
    # Where not even that has room, the lines go on below: better than numbers cut, or tokens left out.
    target.width = max(target.width, _together(least[n] for n in kept))
    stacked = _together((widths if columns[n].right else least)[n] for n in kept) > target.width
    table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for n in kept:
        right, name = columns[n].right, printable(columns[n].name, stream)
        name = name.replace(" ", "\n") if right and stacked else name
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=right, min_width=least[n])
    for row in rows:
        table.add_row(*(Text(printable(row[n].shown, stream), style=row[n].style) for n in kept))
    target.print(table, crop=False)


def _sizes(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> tuple[list[int], list[int]]:
    """How many cells each column takes at most, and at least: with its text folded, or the words of a number's name."""
    cells = [max((cell_len(row[n].shown) for row in rows), default=0) for n in range(len(columns))]
    widths = [max(cell_len(column.name), size) for column, size in zip(columns, cells, strict=True)]
    words = [max(map(cell_len, column.name.split(" "))) for column in columns]
    least = [
        max(word, size) if column.right else min(width, LEAST)
        for column, word, size, width in zip(columns, words, cells, widths, strict=True)
    ]
    return widths, least


def _fitting(columns: Sequence[Column], widths: Sequence[int], least: Sequence[int], width: int) -> list[int]:
    """Which columns fit into ``width`` cells; the others are optional ones."""
    kept = list(range(len(columns)))
    droppable = [n for n in kept if columns[n].optional]
    for n in sorted(droppable, key=lambda n: columns[n].optional, reverse=True):
        sizes = widths if columns[n].optional > 0 else least
        if _together(sizes[m] for m in kept) > width:
            kept.remove(n)
    return kept


def _together(sizes: Iterable[int]) -> int:
    """The width of columns of these sizes, with two cells between each and one behind the last."""
    return sum(size + 2 for size in sizes) - 1
