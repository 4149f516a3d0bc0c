"""``--json`` and ``--save``: how a view's report is written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

import click

from llmcli import render
from llmcli.commands.options.common import bundle
from llmcli.errors import EXIT_FAILURE, usage_error
from llmcli.files.ndjson import write_line
from llmcli.render import json_forms


class CheckResult(Protocol):
    """The result of a report's self-check."""

    @property
    def ok(self) -> bool: ...


class CheckedReport(Protocol):
    """A view's numbers: a frozen dataclass that carries its own check."""

    @property
    def check(self) -> CheckResult: ...


R = TypeVar("R", bound=CheckedReport)


@dataclass(frozen=True)
class OutputOptions:
    """The values of ``--json`` and ``--save``."""

    as_json: bool
    picture: Path | None

    def show(
        self, report: R, draw: Callable[[R, TextIO], None], to_json: Callable[[R], Mapping[str, Any]] | None = None
    ) -> None:
        """Write ``report`` to stdout, as JSON or with ``draw``, and save the picture that --save names.

        ``to_json`` returns the JSON object if its keys are not the report's fields. Exits with code 1 if the report's
        check failed.
        """
        if self.as_json:
            write_line((to_json or json_forms.record)(report), sys.stdout)
        else:
            draw(report, sys.stdout)
        self.save_picture(lambda stream: draw(report, stream))
        if not report.check.ok:
            sys.exit(EXIT_FAILURE)

    def save_picture(self, draw: Callable[[TextIO], None]) -> None:
        """Save what ``draw`` prints to the file of --save, if there is one. Raises LlmcliError if that fails."""
        if self.picture is None:
            return
        canvas = render.Picture()
        draw(canvas)
        try:
            canvas.save(self.picture, title=f"llmcli {click.get_current_context().info_name}")
        except OSError as error:
            raise usage_error(f"{self.picture}: {error.strerror or error}", "name another file") from error
        render.note(f"saved {self.picture}", sys.stderr)


def check_output(as_json: bool, save: Path | None) -> OutputOptions:
    """Return the options. Raises LlmcliError if --save names a file that cannot be written."""
    if save is not None and save.suffix not in (".svg", ".html"):
        raise usage_error(f"--save {save}: the file name must end in .svg or .html")
    if save is not None and not save.absolute().parent.is_dir():
        raise usage_error(f"--save {save}: there is no folder {save.parent}", "create it, or name another file")
    return OutputOptions(as_json, save)


output_options = bundle(
    "output",
    check_output,
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    click.option("--save", type=click.Path(path_type=Path), metavar="FILE", help="Also save a picture, .svg or .html."),
    title="Output",
)
