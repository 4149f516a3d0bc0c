"""The command line: the list of commands, and how errors are reported."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO

import click
from click.shell_completion import CompletionItem

from llmcli import render
from llmcli.commands.shell.help import simplify_message, write_groups
from llmcli.commands.shell.hints import hint_of
from llmcli.commands.shell.torchrun import torchrun_rank
from llmcli.commands.shell.version import print_version
from llmcli.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_READER_GONE,
    EXIT_USAGE,
    LlmcliError,
    did_you_mean,
    out_of_memory,
    usage_error,
)
from llmcli.files.atomic import MORE_SPACE, is_disk_full
from llmcli.text import tokenizer_errors

# The commands by purpose, each with its line in --help. The module of a command is imported when the command runs.
GROUPS = {
    "Generate": {
        "generate": "Continue a text, token by token.",
        "chat": "Chat with a model, turn by turn.",
        "batch": "Continue many prompts, from a file to a file.",
        "log": "List, search and repeat the texts that --log kept.",
        "serve": "Serve a model to other programs.",
    },
    "Look inside": {
        "tour": "How does a language model work? A guided tour.",
        "tokenize": "What does the model receive?",
        "neighbours": "Which tokens have similar meanings?",
        "attend": "What does a token look at?",
        "heads": "What does each attention head look for?",
        "lens": "When does the answer appear?",
        "fit-lens": "Fit a lens that reads early layers better.",
        "why": "What pushed this logit up or down?",
        "explain": "Write a page that explains every token of a text.",
        "explain-step": "How was this token chosen?",
        "branch": "What if the model had chosen another token?",
        "decide": "Which of these answers does the model prefer?",
        "score": "Which tokens surprise the model?",
    },
    "Change it": {
        "patch": "Which parts carry the difference between two texts?",
        "steer": "Find a direction that changes what the model writes.",
    },
    "Check and measure": {
        "compare": "What did fine-tuning change?",
        "inspect": "What is in this model, and does it fit in memory?",
        "verify": "Does llmcli run this model correctly here?",
        "bench": "How fast does a model run here?",
    },
    "Manage models": {
        "quantize": "Quantize a model's weights to 8 or 4 bits.",
        "export": "Write a model as a GGUF file, for llama.cpp and ollama.",
        "train": "Train a small model on your own text files.",
        "models": "List the models on disk.",
        "pull": "Download a model from the Hugging Face Hub.",
        "rm": "Remove a downloaded model.",
    },
    "Set up": {
        "config": "Show which options are set, and where.",
        "completion": "Print the script that completes commands in your shell.",
    },
}
# Limits of the operating system that any command may reach: a message and a hint.
SYSTEM_LIMITS = {
    errno.EMFILE: ("too many files are open", "raise the limit, as with `ulimit -n 1024`"),
    errno.ENFILE: ("too many files are open on this machine", "close other programs"),
    errno.EAGAIN: ("the system does not allow more processes", "close other programs, or raise the limit"),
    errno.ENOMEM: ("out of memory", "use a smaller model, or close other programs"),
}
MAX_MESSAGE = 1000  # characters of an error, unless --verbose
COMMANDS = {name: line for group in GROUPS.values() for name, line in group.items()}


class LazyGroup(click.Group):
    """A group that imports a command from ``llmcli.commands`` when it runs, and reports each error on one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"llmcli.commands.{name}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not ctx.resilient_parsing:
            hint = did_you_mean(args[0], COMMANDS) or "see llmcli --help"
            raise usage_error(f"no such command: {args[0]}", hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_groups({title: list(group.items()) for title, group in GROUPS.items()}, formatter)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Complete the names of commands, without importing them, and the options of llmcli itself."""
        commands = [CompletionItem(name, help=line) for name, line in COMMANDS.items() if name.startswith(incomplete)]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        with exit_if_pipe_closed():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        with exit_if_pipe_closed():
            return super().invoke(ctx)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        # A stream that was closed before Python started is None.
        sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # replace what the terminal cannot encode
                stream.reconfigure(errors="replace", **({} if stream.isatty() else {"encoding": "utf-8"}))
        tokenizer_errors.hide_panics()
        state: dict[str, Any] = {}  # the callback of --verbose sets "verbose" here
        try:
            code = super().main(arguments, *rest, **{**extra, "standalone_mode": False, "obj": state})
            with exit_if_pipe_closed():
                sys.stdout.flush()
            sys.exit(code if isinstance(code, int) else EXIT_OK)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.exceptions.Exit as exit:
            sys.exit(exit.exit_code)
        except (KeyboardInterrupt, click.Abort):
            sys.exit(EXIT_INTERRUPTED)
        except Exception as error:
            fail(error, verbose=state.get("verbose", False))


@contextmanager
def exit_if_pipe_closed() -> Iterator[None]:
    """Exit silently if the program that reads the output closes the pipe.

    The exit code is that of a program that SIGPIPE ends, so `llmcli … | head` looks to a script with
    `set -o pipefail` like `cat … | head`.
    """
    try:
        yield
    except BrokenPipeError:
        discard(sys.stdout, sys.stderr)
        raise click.exceptions.Exit(EXIT_READER_GONE) from None


def discard(*streams: TextIO) -> None:
    """Discard what the streams hold: otherwise Python fails again when it flushes them at exit."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        with suppress(OSError, ValueError):
            os.dup2(devnull, stream.fileno())


def fail(error: Exception, *, verbose: bool) -> NoReturn:
    """Print an error on one line and exit. Any exception that is not an expected error is raised again: it is a bug."""
    expected = (
        error
        if isinstance(error, LlmcliError)
        else click_error(error) or disk_full(error) or system_limit(error) or out_of_memory(error)
    )
    if expected is None:
        raise error
    if expected.exit_code == EXIT_USAGE and torchrun_rank().rank > 0:  # rank 0 prints the same error
        sys.exit(EXIT_USAGE)
    hint = f" ({hint_of(expected)})" if hint_of(expected) else ""
    lines = traceback.format_exception(error) if verbose else []
    message = expected.message if verbose else shortened(expected.message)
    for line in [*"".join(lines).splitlines(), f"llmcli: {message}{hint}".replace("\n", " ")]:
        with suppress(OSError):  # stderr may be on the full disk
            click.echo(visible(line), err=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # the disk is full
            discard(stream)
    sys.exit(expected.exit_code)


def shortened(message: str) -> str:
    """Return a message without its middle if it is very long: it may quote a file, or name hundreds of tensors."""
    return message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 200]} … {message[-200:]}"


def visible(line: str) -> str:
    """Return a line of a message without control characters, which a quoted name or file could smuggle in."""
    if line.isprintable():
        return line
    return render.one_line(line)


def click_error(error: Exception) -> LlmcliError | None:
    """Return click's error about the command line as an LlmcliError, or None if ``error`` is not click's."""
    if not isinstance(error, click.ClickException):
        return None
    context = getattr(error, "ctx", None)
    similar = getattr(error, "possibilities", None)  # names like that of an unknown option
    if similar:
        message, hint = error.message.rstrip("."), f"did you mean {' or '.join(similar)}?"
        return LlmcliError(message, hint, exit_code=error.exit_code)
    hint = f"see {context.command_path} --help" if context else ""
    return LlmcliError(simplify_message(error.format_message()), hint, exit_code=error.exit_code)


def disk_full(error: Exception) -> LlmcliError | None:
    """Return an LlmcliError if ``error`` is a write that failed because the disk is full, else None."""
    if isinstance(error, OSError) and is_disk_full(error):
        return LlmcliError("no space left on the disk", MORE_SPACE)
    return None


def system_limit(error: Exception) -> LlmcliError | None:
    """Return an LlmcliError if ``error`` is the system's refusal of a file, a process or a thread, else None."""
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return LlmcliError("the system does not allow more threads", "close other programs, or raise the limit")
    if not isinstance(error, OSError):
        return None
    if error.errno in SYSTEM_LIMITS:
        return LlmcliError(*SYSTEM_LIMITS[error.errno])
    return None if error.filename is None else LlmcliError(f"{error.filename}: {error.strerror}", "check the path")


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""Options can also be set in a config file (see llmcli config --help) or in environment variables:
    LLMCLI_MODEL for every command, LLMCLI_GENERATE_MODEL for one.

    \b
    Exit codes:
      0    success
      1    an error, or a check that failed
      2    a mistake on the command line or in the config file
      130  interrupted by Ctrl-C
      141  the program reading the output closed it, as head does""",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=print_version,
    help="Show the versions of llmcli, Python and PyTorch.",
)
def cli() -> None:
    """Run a language model on your own machine, and look inside it.

    \b
    Examples:
      llmcli generate "Once upon a time"
      llmcli tour
      llmcli explain-step --help
    """


def main() -> None:
    """Run the command line. ``llmcli.__main__`` calls this."""
    cli(prog_name="llmcli")
