"""Numbers as lengths and shades: bars, sparklines, and the ground of a cell."""

from __future__ import annotations

from collections.abc import Sequence

from llmcli.render.table import Cell

FOR, AGAINST = "dodger_blue1", "dark_orange3"  # told apart by the colour-blind, and by their side
HALF = 9  # cells on each side of a signed bar
SIDES = f"{'against':>{HALF}}│{'for':<{HALF}}"
_HEIGHTS = "▁▂▃▄▅▆▇█"
# Of one hue, and the more conspicuous the larger, on dark and on light grounds.
_SHADES = ((0.5, "grey0 on deep_sky_blue1"), (0.2, "bold dodger_blue1"), (0.05, "dodger_blue1"))


def signed_bar(value: float, most: float) -> Cell:
    """A bar to the right for what is above 0, to the left for what is below, in parts of ``most``; a sign elsewhere."""
    length = round(min(abs(value) / most, 1.0) * HALF) if most > 0 else 0
    left, right = ("", "█" * length) if value > 0 else ("█" * length, "")
    sign = "+" if value > 0 else "-" if value < 0 else ""
    return Cell(f"{left:>{HALF}}│{right:<{HALF}}", sign, {"+": FOR, "-": AGAINST}.get(sign, ""))


def bar(value: float, most: float) -> Cell:
    """A bar for what is never below 0, in parts of ``most``; nothing elsewhere."""
    return Cell("█" * round(min(value / most, 1.0) * HALF) if most > 0 else "", "", FOR)


def sparkline(values: Sequence[float]) -> str:
    """A character a value, by its height between 0 and 1."""
    top = len(_HEIGHTS) - 1
    return "".join(_HEIGHTS[min(max(round(value * top), 0), top)] for value in values)


def shade(share: float) -> str:
    """The style of a cell whose value is ``share``, between 0 and 1."""
    return next((style for least, style in _SHADES if share >= least), "")
