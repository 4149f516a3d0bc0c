"""Pictures of what a color terminal would show, dark or light, as SVG or HTML, with a caption."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME, TerminalTheme
from rich.text import Text

from llmcli.files.atomic import replace_text
from llmcli.render.numbers import ModelLabel
from llmcli.render.text import escape_controls

WIDTH = 92  # columns: as many as a web page shows in readable letters
FRAGMENT = "<pre style=\"font-family: Menlo, 'DejaVu Sans Mono', Consolas, monospace; line-height: 1.25\">{code}</pre>"
MAX_PROMPT = 400  # characters of a prompt in a caption
Theme = Literal["dark", "light"]
LIGHT = TerminalTheme(  # for print: dark text on white, and the eight colors dark enough to read
    (255, 255, 255),
    (32, 32, 32),
    [(0, 0, 0), (176, 0, 32), (0, 110, 50), (130, 90, 0), (0, 70, 170), (145, 0, 110), (0, 105, 115), (90, 90, 90)],
)
THEMES: dict[Theme, TerminalTheme] = {"dark": SVG_EXPORT_THEME, "light": LIGHT}


@dataclass(frozen=True)
class Caption:
    """What a picture shows: the command line, the prompt unless the command line has it, and the models."""

    command: str
    prompt: str | None
    models: Sequence[ModelLabel | str]

    def lines(self) -> list[str]:
        """Return the caption's lines, without control characters; a long prompt loses its middle."""
        lines = [f"$ {self.command}"]
        if self.prompt is not None and self.prompt not in self.command:
            cut = (len(self.prompt) - MAX_PROMPT) // 2
            middle = len(self.prompt) // 2
            shown = self.prompt if cut <= 0 else f"{self.prompt[: middle - cut]} […] {self.prompt[middle + cut :]}"
            lines.append(f"prompt: {shown}")
        if self.models:
            lines.append(f"model: {'; '.join(map(str, self.models))}")
        return [escape_controls(line) for line in lines]


class Picture(io.StringIO):
    """A stream that acts as a color terminal. Print to it with the functions of ``render.terminal``.

    A ``caption`` comes first.
    """

    def __init__(self, theme: Theme = "dark", caption: Caption | None = None) -> None:
        super().__init__()
        self.theme = THEMES[theme]
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
        if caption is not None:
            self.console.print(Text("\n".join(caption.lines()) + "\n", style="bold"))

    def isatty(self) -> bool:
        return True

    def html(self) -> str:
        """Return what was printed as an HTML fragment that needs no style sheet."""
        return self.console.export_html(inline_styles=True, code_format=FRAGMENT, clear=False)

    def save(self, path: Path, title: str) -> None:
        """Write what was printed to ``path``: as HTML if its suffix is .html, otherwise as SVG with ``title``.

        Raises LlmcliError if it cannot be written.
        """
        if path.suffix == ".html":
            text = allowed_in_xml(self.console.export_html(theme=self.theme, inline_styles=True, clear=False))
        else:
            svg = allowed_in_xml(self.console.export_svg(title=title, theme=self.theme, clear=False))
            text = re.sub(r"@font-face\s*{.*?}", "", svg, flags=re.DOTALL)  # no download: the viewer's own fonts
            # Without this, some viewers (librsvg) drop the spaces that indent a tree.
            text = text.replace("<svg ", '<svg xml:space="preserve" ', 1)
        replace_text(path, text)


def allowed_in_xml(text: str) -> str:
    """Return ``text`` with U+FFFD for the characters that XML 1.0 forbids: a viewer would reject the whole picture."""
    return re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
