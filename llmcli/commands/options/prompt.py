"""The prompt of a command: from its argument, a file or a pipe."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import click

from llmcli.commands.options.common import bundle
from llmcli.commands.shell.help import Decorator
from llmcli.errors import LlmcliError, usage_error


@dataclass(frozen=True)
class Prompt:
    """What was said about the prompt; ``read`` fetches it."""

    argument: str | None
    file: Path | None
    parse_special: bool

    def read(self) -> str:
        """From the argument, the file or stdin; an argument and stdin together are joined by a blank line."""
        if self.file is not None:
            if self.argument is not None:
                raise usage_error("a PROMPT and --prompt-file are both given", "give one of them")
            return read_text_file(self.file)
        if self.argument == "-":
            return read_stdin()
        if sys.stdin is None or sys.stdin.isatty():
            if self.argument is None:
                raise usage_error("no prompt", "give it as an argument, with --prompt-file, or through a pipe")
            return self.argument
        return "\n\n".join(part for part in (self.argument, read_stdin()) if part)

    def read_optional(self) -> str | None:
        """Likewise; None where none was given, as by an empty pipe. Errors: an empty one was."""
        given = self.argument is not None or self.file is not None
        silent = sys.stdin is None or sys.stdin.isatty()
        text = self.read() if given or not silent else ""
        if given and not text:
            raise usage_error("the text is empty", "leave it out, and llmcli takes one of its own")
        return text or None


def prompt_options(argument: str = "prompt") -> Decorator:
    """The options of a command whose argument is called ``argument``, as its parameter ``prompt``."""
    return bundle(
        "prompt",
        Prompt,
        click.argument("argument", metavar=f"[{argument.upper()}]", required=False),
        click.option(
            "--prompt-file", "file", type=click.Path(path_type=Path), help=f"Read the {argument} from a file."
        ),
        click.option(
            "--parse-special", is_flag=True, help=f"Read special tokens in the {argument} as tokens, not as text."
        ),
        title="Prompt",
    )


def read_text_file(path: Path) -> str:
    """A UTF-8 file without the line end that closes it. Errors: cannot be read, not UTF-8."""
    try:
        return _text(path.read_bytes(), str(path))
    except OSError as error:
        raise usage_error(f"{path}: {error.strerror or error}", "give a text file") from error


def read_stdin() -> str:
    """All of stdin, likewise."""
    if sys.stdin is None:  # Python's own sign for a stdin that was closed
        raise usage_error("stdin is closed", "give the prompt as an argument")
    try:
        return _text(sys.stdin.buffer.read(), "stdin")
    except OSError as error:
        raise LlmcliError(f"stdin: {error.strerror or error}", "give the prompt as an argument") from error


def _text(data: bytes, source: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise usage_error(f"{source} is not valid UTF-8 at byte {error.start}", "convert it to UTF-8 first") from None
    return text.removesuffix("\n").removesuffix("\r")
