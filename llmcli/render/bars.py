"""Numbers as lengths and shades: bars, sparklines, and the ground of a cell."""

from __future__ import annotations

from collections.abc import Sequence

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_HEIGHTS = "▁▂▃▄▅▆▇█"
# Of one hue, from the terminal's own ground to a clear blue: told apart by lightness alone.
_SHADES = ((0.5, "black on deep_sky_blue1"), (0.2, "white on dodger_blue3"), (0.05, "white on navy_blue"))


def bar(share: float, width: int) -> str:
    """A bar of ``share`` (0 to 1) of ``width`` cells, to an eighth of a cell."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def sparkline(values: Sequence[float]) -> str:
    """A character a value, by its height between 0 and 1."""
    top = len(_HEIGHTS) - 1
    return "".join(_HEIGHTS[min(max(round(value * top), 0), top)] for value in values)


def shade(share: float) -> str:
    """The style of a cell whose value is ``share``, between 0 and 1."""
    return next((style for least, style in _SHADES if share >= least), "")
