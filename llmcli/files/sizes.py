"""Readable sizes of files and memory."""

from __future__ import annotations


def readable(count: int) -> str:
    """``count`` bytes with at most three digits and a decimal unit, as on Hugging Face: 999 B, 1.5 kB, 538 MB."""
    number, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 999.5:
            break
        number, unit = number / 1000, larger
    return f"{number:.0f} {unit}" if unit == "B" or number >= 99.95 else f"{number:.1f} {unit}"
