"""A loss curve as characters for the terminal, and as an SVG picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

Points = Sequence[tuple[float, float]]  # (x, y), x rising

# The eight rows of one character, from the lowest.
_EIGHTHS = " ▁▂▃▄▅▆▇█"


def smooth(points: Points, share: float = 0.02) -> list[tuple[float, float]]:
    """Each y averaged exponentially with those before it, over about ``share`` of the points."""
    keep = 1 - 1 / max(1.0, share * len(points))
    smoothed: list[tuple[float, float]] = []
    for x, y in points:
        smoothed.append((x, y if not smoothed else keep * smoothed[-1][1] + (1 - keep) * y))
    return smoothed


def terminal_curve(points: Points, *, width: int = 64, height: int = 8) -> str:
    """A bar chart of y over x, ``height`` lines of ``width`` columns between labelled limits."""
    low, high = min(y for _, y in points), max(y for _, y in points)
    last_x = max(x for x, _ in points)
    columns: list[list[float]] = [[] for _ in range(width)]
    for x, y in points:
        columns[min(width - 1, int(x / last_x * width))].append(y)
    level, eighths = high, []
    for column in columns:
        level = sum(column) / len(column) if column else level
        eighths.append(round((level - low) / (high - low or 1.0) * height * 8))
    lines = []
    for row in range(height - 1, -1, -1):
        label = f"{high:8.3f}" if row == height - 1 else f"{low:8.3f}" if row == 0 else " " * 8
        lines.append(label + " ┤" + "".join(_EIGHTHS[max(0, min(8, value - row * 8))] for value in eighths).rstrip())
    return "\n".join(lines)


def _short(count: float) -> str:
    """A count with three digits and its thousands or millions."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.3g}"


def svg_curve(title: str, series: Sequence[tuple[str, str, Points]], *, x_label: str, y_label: str) -> str:
    """Lines (name, colour, points) over common axes, as the text of an SVG file."""
    width, height, left, bottom = 720, 400, 60, 50
    xs = [x for _, _, points in series for x, _ in points]
    ys = [y for _, _, points in series for _, y in points]
    x_high, y_low, y_high = max(xs), min(ys), max(ys)

    def place(x: float, y: float) -> str:
        across = left + x / (x_high or 1.0) * (width - left - 20)
        down = 40 + (y_high - y) / (y_high - y_low or 1.0) * (height - bottom - 40)
        return f"{across:.1f},{down:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="24" font-size="16">{escape(title)}</text>',
        f'<text x="{width / 2:.0f}" y="{height - 10}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text x="16" y="{height / 2:.0f}" transform="rotate(-90 16 {height / 2:.0f})" '
        f'text-anchor="middle">{escape(y_label)}</text>',
    ]
    for n in range(5):
        x, y = x_high * n / 4, y_low + (y_high - y_low) * n / 4
        at_x, at_y = place(x, y_low).split(",")[0], place(0, y).split(",")[1]
        parts += [
            f'<line x1="{left}" y1="{at_y}" x2="{width - 20}" y2="{at_y}" stroke="#ddd"/>',
            f'<text x="{left - 6}" y="{at_y}" dy="4" text-anchor="end">{y:.2f}</text>',
            f'<text x="{at_x}" y="{height - bottom + 18}" text-anchor="middle">{_short(x)}</text>',
        ]
    for n, (name, colour, points) in enumerate(series):
        path = " ".join(place(x, y) for x, y in points)
        parts += [
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>',
            f'<text x="{width - 24}" y="{58 + 16 * n}" text-anchor="end" fill="{colour}">{escape(name)}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
