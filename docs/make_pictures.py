"""Draws the README's pictures from the tool's own output: ``python docs/make_pictures.py`` (needs the test extra)."""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from pathlib import Path

import pexpect
from rich.console import Console
from rich.text import Text

WIDTH = 92
PICTURES = {
    "generate": 'generate "Once upon a time, a little fox" --probs=3 -n 18 --seed 5',
    "explain-step": 'explain-step "Once upon a time there was a" --seed 3 --top-k 6 --top 9',
}


def terminal_output(command: str) -> str:
    """What ``llmcli`` writes on a terminal of WIDTH columns, colours included."""
    child = pexpect.spawn(
        sys.executable,
        ["-m", "llmcli", *shlex.split(command)],
        dimensions=(60, WIDTH),
        encoding="utf-8",
        timeout=120,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    child.expect(pexpect.EOF)
    output: str = child.before
    return output.replace("\r\n", "\n").rstrip("\n")


def main() -> None:
    for name, command in PICTURES.items():
        console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
        console.print(Text(f"$ llmcli {command}", style="bold"))
        console.print(Text.from_ansi(terminal_output(command)))
        svg = console.export_svg(title="llmcli")
        svg = re.sub(r"@font-face\s*{.*?}", "", svg, flags=re.DOTALL)  # no fonts from elsewhere
        (Path(__file__).parent / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
