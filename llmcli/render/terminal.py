"""What kind of place the output goes to, and how text is made safe and visible there."""

from __future__ import annotations

import math
import os
import re
from typing import TextIO

from rich.console import Console
from rich.text import Text

from llmcli.render.picture import Picture

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


def styled(stream: TextIO) -> bool:
    """Whether colours and boxes may be written: a picture, or a terminal and neither NO_COLOR nor TERM=dumb."""
    if isinstance(stream, Picture):
        return True
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def console(stream: TextIO) -> Console:
    """A Rich console that treats what it is given as plain text: no markup, no emoji codes, no highlighting."""
    if isinstance(stream, Picture):
        return stream.console
    return Console(file=stream, markup=False, emoji=False, highlight=False)


def say(text: str, stream: TextIO, style: str = "") -> None:
    """A line of a view, or beside one."""
    text = printable(text, stream)
    if styled(stream):
        console(stream).print(Text(text, style=style))
    else:
        stream.write(text + "\n")
        stream.flush()


def band(prob: float) -> tuple[str, str]:
    """Style and sign of a probability."""
    return next((style, sign) for least, style, sign in PROBABILITY_BANDS if prob >= least)


def rank_band(rank: int) -> tuple[str, str]:
    """Style and sign of a rank, 0 the best."""
    return next((style, sign) for below, style, sign in RANK_BANDS if rank < below)


def harmless(text: str) -> str:
    """Text with its control characters as visible symbols, for a terminal: a model may write escape sequences."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: _symbol(match[0]), text)


def printable(text: str, stream: TextIO) -> str:
    """Text as it may go to ``stream``: as it is to a file, ``harmless`` to a terminal or into a picture."""
    return harmless(text) if isinstance(stream, Picture) or stream.isatty() else text


def one_line(text: str) -> str:
    """``harmless`` text on one line, from left to right: line ends and marks of direction are shown as well."""
    text = harmless(text.replace("\n", "⏎").replace("\t", "⇥"))
    return re.sub("[\u2028-\u202e\u2066-\u2069]", lambda match: f"<{ord(match[0]):04X}>", text)


def label(text: str, data: bytes) -> str:
    """A token on one line: spaces as a dot, line ends and controls as symbols, parts of characters as <E2 80>."""
    if data:
        text = data.decode("utf-8", "surrogateescape")
    text = one_line(text.replace(" ", "·"))
    return re.sub("[\udc80-\udcff]+", lambda match: _hex(match[0].encode("utf-8", "surrogateescape")), text)


def _hex(data: bytes) -> str:
    return f"<{data.hex(' ').upper()}>"


def _symbol(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"<{code:02X}>"
