"""Numbers as lengths and shades: bars, sparklines, and the ground of a cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmcli.render.table import Cell

# From likely to unlikely, in colours that the colour-blind tell apart on dark and light grounds,
# with a sign for where there is no colour.
PROBABILITY_BANDS = (
    (0.5, "", "+++"),
    (0.1, "dodger_blue1", "++"),
    (0.01, "dark_orange3", "+"),
    (0.0, "bold magenta", "-"),
)

# Of a token's rank among the candidates, from expected to unexpected (Gehrmann et al. 2019, GLTR).
RANK_BANDS = tuple(
    (below, style, sign) for below, (_, style, sign) in zip((10, 100, 1000, math.inf), PROBABILITY_BANDS, strict=True)
)

FOR, AGAINST = "dodger_blue1", "dark_orange3"  # told apart by the colour-blind, and by their side
HALF = 9  # cells on each side of a signed bar
SIDES = f"{'against':>{HALF}}│{'for':<{HALF}}"
_HEIGHTS = "▁▂▃▄▅▆▇█"
# Of one hue, and the more conspicuous the larger, on dark and on light grounds.
_SHADES = ((0.5, "grey0 on deep_sky_blue1"), (0.2, "bold dodger_blue1"), (0.05, "dodger_blue1"))


def signed_bar_cell(value: float, most: float) -> Cell:
    """A bar to the right for what is above 0, to the left for what is below, in parts of ``most``; a sign elsewhere."""
    length = round(min(abs(value) / most, 1.0) * HALF) if most > 0 else 0
    left, right = ("", "█" * length) if value > 0 else ("█" * length, "")
    sign = "+" if value > 0 else "-" if value < 0 else ""
    return Cell(f"{left:>{HALF}}│{right:<{HALF}}", sign, {"+": FOR, "-": AGAINST}.get(sign, ""))


def bar_cell(value: float, most: float) -> Cell:
    """A bar for what is never below 0, in parts of ``most``; nothing elsewhere."""
    return Cell("█" * round(min(value / most, 1.0) * HALF) if most > 0 else "", "", FOR)


def sparkline(values: Sequence[float]) -> str:
    """A character a value, by its height between 0 and 1."""
    top = len(_HEIGHTS) - 1
    return "".join(_HEIGHTS[min(max(round(value * top), 0), top)] for value in values)


def shade(share: float) -> str:
    """The style of a cell whose value is ``share``, between 0 and 1."""
    return next((style for least, style in _SHADES if share >= least), "")


def probability_band(prob: float) -> tuple[str, str]:
    """Style and sign of a probability."""
    return next((style, sign) for least, style, sign in PROBABILITY_BANDS if prob >= least)


def rank_band(rank: int) -> tuple[str, str]:
    """Style and sign of a rank, 0 the best."""
    return next((style, sign) for below, style, sign in RANK_BANDS if rank < below)
