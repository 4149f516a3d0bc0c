"""The prompt of a command: from its argument, a file or a pipe."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import click

from llmcli import hub
from llmcli.commands.options.common import bundle
from llmcli.commands.shell.help import Decorator
from llmcli.errors import LlmcliError, usage_error
from llmcli.files.reading import read_file
from llmcli.files.sizes import readable

MAX_BYTES = 2**24  # of a text: more than most models' contexts hold; encoding it needs a few gigabytes


@dataclass(frozen=True)
class Prompt:
    """Where the prompt comes from; ``read`` returns its text."""

    argument: str | None
    file: Path | None
    parse_special: bool

    def read(self) -> str:
        """Return the text of the argument, the file or stdin. Argument and piped text are joined by a blank line.

        Only the argument "" is an empty prompt: a file or a pipe without text is the result of a mistake. Raises
        LlmcliError for those, if there is no prompt, if there are two, if the argument is the path of a model, or if
        the file or stdin cannot be read.
        """
        if self.argument is not None and hub.is_model_path(self.argument):
            raise usage_error(f"{self.argument} is a model, not a text", "name a model with -m")
        if self.file is not None:
            if self.argument is not None:
                raise usage_error("PROMPT and --prompt-file cannot be combined", "give one of them")
            return _not_empty(read_text_file(self.file), str(self.file))
        piped = sys.stdin is not None and not sys.stdin.isatty()
        if self.argument == "-" or (self.argument is None and piped):
            return _not_empty(read_stdin(), "stdin")
        if self.argument is None:
            raise usage_error("no prompt", "give it as an argument, with --prompt-file or through a pipe")
        return "\n\n".join(part for part in (self.argument, read_stdin() if piped else "") if part)

    def read_optional(self) -> str | None:
        """Return the prompt like ``read``, or None if there is none. Raises LlmcliError if an empty one was given."""
        if self.argument is None and self.file is None:  # even with an empty stdin, as in a scheduled job
            return None if sys.stdin is None or sys.stdin.isatty() else read_stdin() or None
        text = self.read()
        if not text:
            raise usage_error("the text is empty", "give a text, or omit it")
        return text


def prompt_options(argument: str = "prompt") -> Decorator:
    """Return the prompt options, passed as ``prompt``; --help calls the argument ``argument``."""
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


def _not_empty(text: str, source: str) -> str:
    """Return a text. Raises LlmcliError if it is empty."""
    if not text:
        raise usage_error(f"{source} is empty", 'check where the text comes from, or give "" for an empty one')
    return text


def read_text_file(path: Path) -> str:
    """Return the text of a UTF-8 file without its final line break. Raises LlmcliError if it cannot be read."""
    try:
        return _text(read_file(path, MAX_BYTES, pipes=True), str(path))
    except OSError as error:
        raise usage_error(f"{path}: {error.strerror or error}", "give a text file") from error


def read_stdin() -> str:
    """Return all of stdin, without its final line break. Raises LlmcliError if it cannot be read."""
    if sys.stdin is None:  # how Python marks a closed stdin
        raise usage_error("stdin is closed", "give the prompt as an argument")
    try:
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
    except OSError as error:
        raise LlmcliError(f"stdin: {error.strerror or error}", "give the prompt as an argument") from error
    if len(data) > MAX_BYTES:
        raise LlmcliError(f"stdin: more than {readable(MAX_BYTES)}", "give a shorter text")
    return _text(data, "stdin")


def _text(data: bytes, source: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise usage_error(f"{source} is not valid UTF-8 at byte {error.start}", "convert it to UTF-8 first") from None
    return text.removesuffix("\n").removesuffix("\r")
