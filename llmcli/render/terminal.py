"""What kind of place the output goes to, and how text is made safe and visible there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.text import Text

from llmcli.render.picture import Picture
from llmcli.render.text import escape_controls

if TYPE_CHECKING:
    from llmcli.explain.report import Check, Claim


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


def print_line(text: str, stream: TextIO, style: str = "") -> None:
    """A line of a view, or beside one."""
    text = printable(text, stream)
    if styled(stream):
        console(stream).print(Text(text, style=style))
    else:
        stream.write(text + "\n")
        stream.flush()


def printable(text: str, stream: TextIO) -> str:
    """Text as it may go to ``stream``: as it is to a file, ``harmless`` to a terminal or into a picture."""
    return escape_controls(text) if isinstance(stream, Picture) or stream.isatty() else text


def note(text: str, stream: TextIO) -> None:
    """A line beside the text: dim on a terminal."""
    print_line(text, stream, "dim")


def print_check(check: Check, stream: TextIO) -> None:
    """One line: each claim, and how far it is from holding."""
    claims = "; ".join(_told(claim) for claim in check.claims)
    print_line(f"check: {'ok' if check.ok else 'FAILED'}; {claims}", stream, style="" if check.ok else "bold red")


def _told(claim: Claim) -> str:
    within = "exactly" if claim.error == 0 else f"within {claim.error:.0e}"
    return f"{claim.what} {within}" + ("" if claim.holds else f", where at most {claim.limit:.0e} is right")
