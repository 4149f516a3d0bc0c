"""Lines for a stream, which may be a color terminal, a plain terminal, a file, or a picture."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TextIO

from rich.console import Console
from rich.text import Text

from llmcli import explain
from llmcli.render.numbers import ModelLabel
from llmcli.render.picture import Picture
from llmcli.render.text import escape_controls, one_line


def drawn(stream: TextIO) -> bool:
    """Return whether people read ``stream``: a picture or a terminal. Programs read pipes and files."""
    return isinstance(stream, Picture) or stream.isatty()


def styled(stream: TextIO) -> bool:
    """Return whether ``stream`` shows colors: a picture, or a terminal without NO_COLOR and TERM=dumb."""
    return isinstance(stream, Picture) or (animated(stream) and not os.environ.get("NO_COLOR"))


def animated(stream: TextIO) -> bool:
    """Return whether a line on ``stream`` can be drawn again, as for a progress bar: a terminal without TERM=dumb."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def console(stream: TextIO) -> Console:
    """Return a Rich console for ``stream`` that prints text literally: no markup, no emoji codes, no highlighting."""
    if isinstance(stream, Picture):
        return stream.console
    colors: Literal["auto"] | None = "auto" if styled(stream) else None
    dumb = stream.isatty() and not animated(stream)  # Rich takes its width to be 80
    size = shutil.get_terminal_size() if dumb else None
    return Console(
        file=stream,
        width=size and size.columns,
        height=size and size.lines,
        force_jupyter=False,
        markup=False,
        emoji=False,
        highlight=False,
        color_system=colors,
    )


def printable(text: str, stream: TextIO) -> str:
    """Return ``text`` as it may go to ``stream``: unchanged to a file, with visible control characters elsewhere."""
    return escape_controls(text) if isinstance(stream, Picture) or stream.isatty() else text


def print_line(text: str, stream: TextIO, style: str = "") -> None:
    """Print one line, in ``style`` if the stream shows colors; a terminal's width wraps it between words."""
    text = printable(text, stream)
    if drawn(stream):
        console(stream).print(Text(text, style=style))
    else:
        stream.write(text + "\n")
        stream.flush()


def note(text: str, stream: TextIO) -> None:
    """Print a line about the output rather than of it, dim if the stream shows colors."""
    if isinstance(stream, Picture) or stream.isatty():
        text = "\n".join(map(one_line, text.split("\n")))  # without direction marks, which a file's name may contain
    print_line(text, stream, "dim")


def print_path(path: Path, stream: TextIO) -> None:
    """Print a path as a result: exactly, for a program to read it, but harmless on a terminal."""
    stream.write((one_line(str(path)) if stream.isatty() else str(path)) + "\n")
    stream.flush()


def print_check(check: explain.Check, stream: TextIO) -> None:
    """Print the line that ends a view: whether its claims hold, each with its error."""
    claims = "; ".join(_claim(claim) for claim in check.claims)
    print_line(f"check: {'ok' if check.ok else 'FAILED'}; {claims}", stream, style="" if check.ok else "bold red")


def print_model_lines(models: Sequence[ModelLabel], stream: TextIO) -> None:
    """Print a line for each model that computed a view's numbers, with its dtype."""
    for model in models:
        print_line(f"model: {one_line(str(model))}", stream, "dim")


def error_label(error: float) -> str:
    """Return how a check names an error."""
    return "exact" if error == 0 else f"error {error:.0e}"


def _claim(claim: explain.Claim) -> str:
    """Return the claim with its error, and with its limit if the error is above it."""
    return f"{claim.what} ({error_label(claim.error)}{'' if claim.holds else f', above the limit {claim.limit:.0e}'})"
