"""The options that say in which form a view is shown, and showing it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

import click

from llmcli.commands.options.common import bundle
from llmcli.errors import EXIT_FAILURE, usage_error


class Verdict(Protocol):
    """What a check says in the end."""

    @property
    def ok(self) -> bool: ...


class Report(Protocol):
    """A view in numbers: a frozen dataclass that carries its own check."""

    @property
    def check(self) -> Verdict: ...


R = TypeVar("R", bound=Report)


@dataclass(frozen=True)
class Form:
    """What was said about the form; ``show`` writes the view."""

    as_json: bool
    picture: Path | None

    def show(
        self, report: R, draw: Callable[[R, TextIO], None], record: Callable[[R], Mapping[str, Any]] | None = None
    ) -> None:
        """The report on stdout, by ``draw`` or as JSON, and as a picture; a check that failed is exit code 1.

        ``record`` makes the JSON where its keys are not the report's fields.
        """
        from llmcli.files.ndjson import write_line
        from llmcli.render import json_forms

        if self.as_json:
            write_line((record or json_forms.record)(report), sys.stdout)
        else:
            draw(report, sys.stdout)
        self.paint(lambda stream: draw(report, stream))
        if not report.check.ok:
            sys.exit(EXIT_FAILURE)

    def paint(self, draw: Callable[[TextIO], None]) -> None:
        """What ``draw`` prints, as the picture that was asked for, if one was."""
        from llmcli.render.picture import Picture
        from llmcli.render.terminal import note

        if self.picture is None:
            return
        canvas = Picture()
        draw(canvas)
        try:
            canvas.save(self.picture, title=f"llmcli {click.get_current_context().info_name}")
        except OSError as error:
            raise usage_error(f"{self.picture}: {error.strerror or error}", "name another file") from error
        note(f"saved {self.picture}", sys.stderr)


def form(as_json: bool, save: Path | None) -> Form:
    """The options, checked. Errors: a picture that cannot be written."""
    if save is not None and save.suffix not in (".svg", ".html"):
        raise usage_error(f"--save {save} is neither .svg nor .html", "end the name in one of them")
    if save is not None and not save.absolute().parent.is_dir():
        raise usage_error(f"there is no folder {save.parent}", "make it first, or name another file")
    return Form(as_json, save)


form_options = bundle(
    "form",
    form,
    click.option("--json", "as_json", is_flag=True, help="One JSON object."),
    click.option(
        "--save", type=click.Path(path_type=Path), metavar="FILE", help="Also draw it as a picture, .svg or .html."
    ),
    title="Output",
)
