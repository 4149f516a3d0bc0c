"""``--json``, ``--save`` and ``--theme``: how a view's report is written."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO, TypeVar

import click

from llmcli import render
from llmcli.commands.options.common import Choice, bundle
from llmcli.commands.options.writable import check_writable
from llmcli.commands.shell.command import arguments_of
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
    """The values of ``--json``, ``--save`` and ``--theme``."""

    as_json: bool
    picture: Path | None
    theme: Literal["dark", "light"]

    def show(
        self,
        report: R,
        draw: Callable[[R, TextIO], None],
        to_json: Callable[[R], Mapping[str, Any]] | None = None,
        *,
        prompt: str | None = None,
        models: Sequence[render.ModelLabel | str],
    ) -> None:
        """Write ``report`` to stdout, as JSON or with ``draw``, and save the picture that --save names.

        ``to_json`` returns the JSON object if its keys are not the report's fields. ``prompt`` is for the picture's
        caption. ``models`` are those that computed the numbers: each is named with its dtype, which limits the digits.
        Of a model whose tokenizer alone was used, it is only the name. Exits with code 1 if the report's check failed.
        """
        used = labels(models)
        if self.as_json:
            form = (to_json or json_forms.record)(report)
            write_line(json_forms.rounded(json_forms.with_dtypes(form, used), render.most_digits(used)), sys.stdout)
        else:
            with render.at_most(render.most_digits(used)):
                draw(report, sys.stdout)
            render.print_model_lines(used, sys.stdout)
        self.save_picture(lambda stream: draw(report, stream), prompt=prompt, models=models)
        if not report.check.ok:
            sys.exit(EXIT_FAILURE)

    def save_picture(
        self,
        draw: Callable[[TextIO], None],
        *,
        prompt: str | None = None,
        models: Sequence[render.ModelLabel | str],
    ) -> None:
        """Save what ``draw`` prints to the file of --save, if there is one. Raises LlmcliError if that fails."""
        if self.picture is None:
            return
        ctx = click.get_current_context()
        canvas = render.Picture(self.theme, render.Caption(command_line(ctx), prompt, models))
        with render.at_most(render.most_digits(labels(models))):
            draw(canvas)
        canvas.save(self.picture, title=f"llmcli {ctx.info_name}")
        render.note(f"saved {self.picture}", sys.stderr)


def labels(models: Sequence[render.ModelLabel | str]) -> list[render.ModelLabel]:
    """Return those of ``models`` that computed numbers."""
    return [model for model in models if not isinstance(model, str)]


def command_line(ctx: click.Context) -> str:
    """Return the command line without the options of the picture itself."""
    words, left = [ctx.info_name or ""], list(arguments_of(ctx))
    while left:
        word = left.pop(0)
        if word in ("--save", "--theme"):
            del left[:1]
        elif not word.startswith(("--save=", "--theme=")):
            words.append(word)
    return shlex.join(["llmcli", *words])


def check_output(as_json: bool, save: Path | None, theme: Literal["dark", "light"]) -> OutputOptions:
    """Return the options. Raises LlmcliError if --save names a file that cannot be written."""
    if save is not None and save.suffix not in (".svg", ".html"):
        raise usage_error(f"--save {save}: the file name must end in .svg or .html")
    if save is not None:
        check_writable("--save", save)
    return OutputOptions(as_json, save, theme)


output_options = bundle(
    "output",
    check_output,
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    click.option("--save", type=click.Path(path_type=Path), metavar="FILE", help="Also save a picture, .svg or .html."),
    click.option(
        "--theme",
        type=Choice(("dark", "light")),
        default="dark",
        show_default=True,
        help="Colors of the picture; light is for print.",
    ),
    title="Output",
)
