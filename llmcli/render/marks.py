"""Numbers as visual marks: colors and signs for probabilities and ranks, bars, sparklines, shades."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmcli.render.table import Cell

# From likely to unlikely: (lower bound, style, sign). The colors are distinct for the color-blind and readable on dark
# and light backgrounds; the signs replace them where there is no color.
PROBABILITY_BANDS = (
    (0.5, "", "+++"),
    (0.1, "dodger_blue1", "++"),
    (0.01, "dark_orange3", "+"),
    (0.0, "bold magenta", "-"),
)

# From expected to unexpected: (upper bound of the rank, style, sign), as in GLTR (Gehrmann et al. 2019).
RANK_BANDS = tuple(
    (below, style, sign) for below, (_, style, sign) in zip((10, 100, 1000, math.inf), PROBABILITY_BANDS, strict=True)
)

POSITIVE, NEGATIVE = "dodger_blue1", "dark_orange3"  # distinct for the color-blind, and by their side of the bar
BAR_WIDTH = 9  # cells of a bar, and of each side of a signed bar
_HEIGHTS = "▁▂▃▄▅▆▇█"
# (lower bound, style): one hue, stronger for larger values, readable on dark and light backgrounds.
_SHADES = ((0.5, "grey0 on deep_sky_blue1"), (0.2, "bold dodger_blue1"), (0.05, "dodger_blue1"))


def probability_band(prob: float) -> tuple[str, str]:
    """Return the style and the sign for a probability."""
    return next((style, sign) for lowest, style, sign in PROBABILITY_BANDS if prob >= lowest)


def rank_band(rank: int) -> tuple[str, str]:
    """Return the style and the sign for a rank; 0 is the most probable token's."""
    return next((style, sign) for below, style, sign in RANK_BANDS if rank < below)


def bar_cell(value: float, longest: float) -> Cell:
    """Return a bar for a value of at least 0; ``longest`` has full length. Empty in plain output."""
    return Cell("█" * round(min(value / longest, 1.0) * BAR_WIDTH) if longest > 0 else "", "", POSITIVE)


def signed_bar_cell(value: float, longest: float) -> Cell:
    """Return a bar to the right for a positive value and to the left for a negative one; its sign in plain output."""
    length = round(min(abs(value) / longest, 1.0) * BAR_WIDTH) if longest > 0 else 0
    left, right = ("", "█" * length) if value > 0 else ("█" * length, "")
    sign = "+" if value > 0 else "-" if value < 0 else ""
    return Cell(f"{left:>{BAR_WIDTH}}│{right:<{BAR_WIDTH}}", sign, {"+": POSITIVE, "-": NEGATIVE}.get(sign, ""))


def signed_bar_heading(left: str, right: str) -> str:
    """Return the heading of a column of signed bars, which names both sides."""
    return f"{left:>{BAR_WIDTH}}│{right:<{BAR_WIDTH}}"


def sparkline(values: Sequence[float]) -> str:
    """Return one character per value, as high as the value between 0 and 1."""
    top = len(_HEIGHTS) - 1
    return "".join(_HEIGHTS[min(max(round(value * top), 0), top)] for value in values)


def shade(weight: float) -> str:
    """Return the style of a cell for a weight between 0 and 1."""
    return next((style for lowest, style in _SHADES if weight >= lowest), "")
