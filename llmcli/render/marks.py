"""Numbers as visual marks: colors and signs for probabilities, their legend, bars, sparklines, shades."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TextIO

from rich.text import Text

from llmcli.render.table import Cell
from llmcli.render.terminal import console, print_line, styled

# From likely to unlikely: (lower bound, style, sign). The colors are distinct for the color-blind and readable on dark
# and light backgrounds; the signs replace them where there is no color.
PROBABILITY_BANDS = (
    (0.5, "", "+++"),
    (0.1, "dodger_blue1", "++"),
    (0.01, "dark_orange3", "+"),
    (0.0, "bold magenta", "-"),
)

POSITIVE, NEGATIVE = "dodger_blue1", "dark_orange3"  # distinct for the color-blind, and by their side of the bar
BAR_WIDTH = 9  # cells of a bar, and of each side of a signed bar
_HEIGHTS = "▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉"
# (lower bound, style): one hue, stronger for larger values, readable on dark and light backgrounds.
_SHADES = ((0.5, "grey0 on deep_sky_blue1"), (0.2, "bold dodger_blue1"), (0.05, "dodger_blue1"))


def probability_band(prob: float) -> tuple[str, str]:
    """Return the style and the sign for a probability."""
    return next((style, sign) for lowest, style, sign in PROBABILITY_BANDS if prob >= lowest)


def surprisal_band(bits: float) -> tuple[str, str]:
    """Return the style and the sign for a surprisal: those of the probability 2 ** -``bits``."""
    return probability_band(2.0**-bits)


def print_legend(stream: TextIO, *, in_bits: bool = False) -> None:
    """Print what the colors and signs mean: probabilities, or with ``in_bits`` the same bands as surprisals."""
    name = "surprisal, bits" if in_bits else "p"
    parts = [(f"{_bound(lowest, in_bits)} {sign}", style) for lowest, style, sign in PROBABILITY_BANDS]
    if not styled(stream):
        print_line(f"{name}: " + "  ".join(part for part, _ in parts), stream)
        return
    legend = Text.assemble((f"{name}: ", "dim"))
    for n, (part, style) in enumerate(parts):
        legend.append("  " if n else "").append(part, style)
    console(stream).print(legend)


def _bound(lowest: float, in_bits: bool) -> str:
    """Return how a band is bounded: "0.1 or more", or in bits "up to 3.32"."""
    if not lowest:
        return "above" if in_bits else "less"
    return f"up to {-math.log2(lowest):.3g}" if in_bits else f"{lowest:g} or more"


def bar_cell(value: float, longest: float) -> Cell:
    """Return a bar for a value of at least 0; ``longest`` has full length. Empty in plain output."""
    return Cell("█" * round(min(value / longest, 1.0) * BAR_WIDTH) if longest > 0 else "", "", POSITIVE)


def filled(share: float, width: int) -> str:
    """Return a bar of ``width`` cells of which ``share`` (0 to 1) is filled, in eighths of a cell."""
    whole, part = divmod(round(share * width * 8), 8)
    return ("█" * whole + _EIGHTHS[part]).strip().ljust(width)


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
    """Return one character per value, as high as the value between the lowest and the highest of them."""
    low, top = min(values), len(_HEIGHTS) - 1
    spread = max(values) - low
    return "".join(_HEIGHTS[round((value - low) / spread * top) if spread else top] for value in values)


def shade(weight: float) -> str:
    """Return the style of a cell for a weight between 0 and 1."""
    return next((style for lowest, style in _SHADES if weight >= lowest), "")
