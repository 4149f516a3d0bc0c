"""Pictures of what a color terminal would show, as SVG or HTML."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from llmcli.files.atomic import replacing

WIDTH = 92  # columns: as many as a web page shows in readable letters
FRAGMENT = "<pre style=\"font-family: Menlo, 'DejaVu Sans Mono', Consolas, monospace; line-height: 1.25\">{code}</pre>"


class Picture(io.StringIO):
    """A stream that acts as a color terminal. Print to it with the functions of ``render.terminal``."""

    def __init__(self) -> None:
        super().__init__()
        self.console = Console(
            file=io.StringIO(),
            record=True,
            width=WIDTH,
            force_terminal=True,
            force_jupyter=False,  # in a notebook Rich would also display each line itself
            color_system="truecolor",
            no_color=False,
            markup=False,
            emoji=False,
            highlight=False,
        )

    def isatty(self) -> bool:
        return True

    def html(self) -> str:
        """Return what was printed as an HTML fragment that needs no style sheet."""
        return self.console.export_html(inline_styles=True, code_format=FRAGMENT, clear=False)

    def save(self, path: Path, title: str) -> None:
        """Write what was printed to ``path``: as HTML if its suffix is .html, otherwise as SVG with ``title``."""
        if path.suffix == ".html":
            text = allowed_in_xml(self.console.export_html(inline_styles=True, clear=False))
        else:
            svg = allowed_in_xml(self.console.export_svg(title=title, clear=False))
            text = re.sub(r"@font-face\s*{.*?}", "", svg, flags=re.DOTALL)  # no download: the viewer's own fonts
            # Without this, some viewers (librsvg) drop the spaces that indent a tree.
            text = text.replace("<svg ", '<svg xml:space="preserve" ', 1)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def allowed_in_xml(text: str) -> str:
    """Return ``text`` with U+FFFD for the characters that XML 1.0 forbids: a viewer would reject the whole picture."""
    return re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
