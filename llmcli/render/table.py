"""Tables in two forms: colored and fitted to a terminal, or tab-separated with all digits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

from rich import box
from rich.cells import cell_len
from rich.table import Table as RichTable
from rich.text import Text

from llmcli.render.numbers import fixed, full
from llmcli.render.terminal import console, drawn, printable

MIN_TEXT_WIDTH = 4  # of a text column, in cells; longer text wraps


@dataclass(frozen=True)
class Column:
    """A column of a table. ``right`` aligns it to the right, as numbers are; text columns may wrap.

    A column whose ``optional`` is not 0 is dropped if the terminal is too narrow, the highest number first. Those below
    0 are dropped only if wrapping the text columns does not save enough. ``plain`` is the heading in tab-separated
    output, by default ``name``; several headings are columns of their own.
    """

    name: str
    right: bool = True
    optional: int = 0
    plain: str | tuple[str, ...] | None = None


@dataclass(frozen=True)
class Cell:
    """A cell: ``shown`` in ``style`` on a terminal, ``plain`` in tab-separated output (by default the same text).

    ``plain`` has a value for each of the column's headings there; values that are missing at its end are empty.
    """

    shown: str
    plain: str | tuple[str, ...] | None = None
    style: str = ""


def number_cell(value: float | None, digits: int = 4, style: str = "") -> Cell:
    """Return a number with ``digits`` decimals on a terminal, with all digits that hold elsewhere; empty for None.

    Only 0 is shown as 0.
    """
    if value is None:
        return Cell("", "")
    shown = fixed(value, digits)
    return Cell(f"{value:.0e}" if value and not float(shown) else shown, full(value), style)


def probability_cell(value: float, style: str = "", *, logprob: float | None = None) -> Cell:
    """Return a probability with four decimals, but never 0.0000 for one above 0, nor 1.0000 for one below 1.

    ``logprob`` (nats) is shown for a probability that is too small for a float.
    """
    return Cell(_probability(value, logprob), full(value), style)


def _probability(value: float, logprob: float | None) -> str:
    shown = f"{value:.4f}"
    if shown == "0.0000" and value > 0:
        return f"{value:.0e}"
    if value == 0 and logprob is not None and math.isfinite(logprob):
        return f"1e{logprob / math.log(10):.0f}"
    return ">.9999" if shown == "1.0000" and value < 1 else shown


UNKNOWN = Cell("–", "")  # a terminal drops a column in which every value is unknown


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], stream: TextIO) -> None:
    """Print a table in the form that suits the stream. No number is ever cut: columns are dropped or text wraps."""
    if not drawn(stream):
        headings = [_plain(column.plain, column.name) for column in columns]
        lines = [[heading for each in headings for heading in each]]
        for row in rows:
            cells = [_plain(cell.plain, cell.shown) for cell in row]
            padded = [(*cell, *[""] * (len(each) - len(cell))) for cell, each in zip(cells, headings, strict=True)]
            lines.append([value for cell in padded for value in cell])
        stream.writelines("\t".join(printable(part, stream) for part in line) + "\n" for line in lines)
        stream.flush()
        return
    known = [n for n in range(len(columns)) if not rows or any(row[n] != UNKNOWN for row in rows)]
    columns, rows = [columns[n] for n in known], [[row[n] for n in known] for row in rows]
    target = console(stream)
    widths, minimum = _sizes(columns, rows)
    kept = _fitting(columns, widths, minimum, target.width)
    # If even that does not fit, the terminal wraps the lines, which is better than cut numbers or missing tokens.
    target.width = max(target.width, _total_width(minimum[n] for n in kept))
    stacked = _total_width((widths if columns[n].right else minimum)[n] for n in kept) > target.width
    table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for n in kept:
        right, name = columns[n].right, printable(columns[n].name, stream)
        name = name.replace(" ", "\n") if right and stacked else name
        table.add_column(
            name, justify="right" if right else "left", overflow="fold", no_wrap=right, min_width=minimum[n]
        )
    for row in rows:
        table.add_row(*(Text(printable(row[n].shown, stream), style=row[n].style) for n in kept))
    target.print(table, crop=False)


def _plain(plain: str | tuple[str, ...] | None, shown: str) -> tuple[str, ...]:
    """Return the values of a cell, or the headings of a column, in tab-separated output."""
    return plain if isinstance(plain, tuple) else (shown if plain is None else plain,)


def _sizes(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> tuple[list[int], list[int]]:
    """Return the full and the minimum width of each column: text wraps, and so does the heading of numbers."""
    cells = [max((cell_len(row[n].shown) for row in rows), default=0) for n in range(len(columns))]
    widths = [max(cell_len(column.name), size) for column, size in zip(columns, cells, strict=True)]
    words = [max(map(cell_len, column.name.split(" "))) for column in columns]
    minimum = [
        max(word, size) if column.right else min(width, MIN_TEXT_WIDTH)
        for column, word, size, width in zip(columns, words, cells, widths, strict=True)
    ]
    return widths, minimum


def _fitting(columns: Sequence[Column], widths: Sequence[int], minimum: Sequence[int], width: int) -> list[int]:
    """Return the indices of the columns that fit into ``width`` cells after dropping optional ones."""
    kept = list(range(len(columns)))
    droppable = [n for n in kept if columns[n].optional]
    for n in sorted(droppable, key=lambda n: columns[n].optional, reverse=True):
        sizes = widths if columns[n].optional > 0 else minimum
        if _total_width(sizes[m] for m in kept) > width:
            kept.remove(n)
    return kept


def _total_width(sizes: Iterable[int]) -> int:
    """Return the width of columns of these sizes, with two cells between them and one after the last."""
    return sum(size + 2 for size in sizes) - 1
