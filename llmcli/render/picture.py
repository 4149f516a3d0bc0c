"""A picture of what a terminal would show, as SVG or HTML."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from llmcli.files.atomic import replacing

SUFFIXES = (".svg", ".html")
WIDTH = 92  # columns: what a page can show without making the letters small


class Picture(io.StringIO):
    """A stream that passes for a colour terminal, on which everything is printed through ``console``."""

    def __init__(self) -> None:
        super().__init__()
        self.console = Console(
            file=io.StringIO(),
            record=True,
            width=WIDTH,
            force_terminal=True,
            color_system="truecolor",
            no_color=False,
            markup=False,
            emoji=False,
            highlight=False,
        )

    def isatty(self) -> bool:
        return True

    def save(self, path: Path, title: str) -> None:
        """Write it to ``path``, in the format that its suffix tells; fonts are the viewer's own."""
        if path.suffix == ".html":
            text = self.console.export_html(inline_styles=True)
        else:
            text = re.sub(r"@font-face\s*{.*?}", "", self.console.export_svg(title=title), flags=re.DOTALL)
            # Or some viewers (librsvg) drop the spaces that a line begins with: those that indent a tree.
            text = text.replace("<svg ", '<svg xml:space="preserve" ', 1)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
