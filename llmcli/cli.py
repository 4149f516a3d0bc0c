"""The command line: which commands there are, and how every error ends."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import click

from llmcli.commands.shell.help import plainly, write_groups
from llmcli.commands.shell.hints import hint_of
from llmcli.commands.shell.torchrun import torchrun
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

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# By purpose: name -> one line for --help. A command's module is imported when it is called: some need torch.
GROUPS = {
    "Write": {
        "generate": "Continue a text, one token after the other.",
        "chat": "Talk with a model, turn by turn.",
        "batch": "Continue many prompts, from a file to a file.",
    },
    "See inside": {
        "tour": "How does a language model work? Eight stops.",
        "tokenize": "What does the model receive?",
        "neighbours": "Which tokens mean alike?",
        "attend": "What does a token look at?",
        "lens": "When does the answer appear, layer by layer?",
        "why": "What pushed this logit?",
        "explain-step": "Why this token?",
        "branch": "What if it had chosen another token?",
        "score": "Where was the model surprised?",
    },
    "Check and measure": {
        "compare": "What did fine-tuning change?",
        "inspect": "What is this model, and does it fit?",
        "verify": "Is this model run right here?",
        "bench": "Measure how fast a model runs here.",
    },
    "Make and manage models": {
        "quantize": "Round a model's weights to 8 or 4 bits.",
        "train": "Train a small model of your own on text files.",
        "models": "List the models on disk.",
        "pull": "Download a model from the Hugging Face hub.",
        "rm": "Remove a downloaded model.",
    },
    "Set up": {
        "config": "Show which options are set, and where.",
        "completion": "Let the shell complete commands, options and model names.",
    },
}
COMMANDS = {name: line for group in GROUPS.values() for name, line in group.items()}


class LazyGroup(click.Group):
    """A group whose commands are modules of ``llmcli.commands``, and whose errors are one line each."""

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
            raise usage_error(f"there is no command {args[0]!r}", hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_groups({title: list(group.items()) for title, group in GROUPS.items()}, formatter)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Names of commands, without importing any; and the options of llmcli itself."""
        from click.shell_completion import CompletionItem

        named = [CompletionItem(name, help=line) for name, line in COMMANDS.items() if name.startswith(incomplete)]
        return [*named, *click.Command.shell_complete(self, ctx, incomplete)]

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        with quiet_when_unread():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        with quiet_when_unread():
            return super().invoke(ctx)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        # Python's sign for a stream that was closed is None, which nothing can be written to.
        sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # text that the terminal cannot show must not stop us
                stream.reconfigure(errors="replace", **({} if stream.isatty() else {"encoding": "utf-8"}))
        try:
            code = super().main(arguments, *rest, **{**extra, "standalone_mode": False})
            with quiet_when_unread():
                sys.stdout.flush()
            sys.exit(code if isinstance(code, int) else EXIT_OK)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.exceptions.Exit as gone:
            sys.exit(gone.exit_code)
        except (KeyboardInterrupt, click.Abort):
            sys.exit(EXIT_INTERRUPTED)
        except Exception as error:
            fail(error, verbose="--verbose" in arguments)


@contextmanager
def quiet_when_unread() -> Iterator[None]:
    """End in silence where whoever read our output has gone, with the exit code of the tools that SIGPIPE ends.

    So a script with `set -o pipefail` sees of `llmcli … | head` what it sees of `cat … | head`.
    """
    try:
        yield
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)  # Python would complain once more when it flushes at exit
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                os.dup2(nowhere, stream.fileno())
        raise click.exceptions.Exit(EXIT_READER_GONE) from None


def fail(error: Exception, *, verbose: bool) -> NoReturn:
    """Say what went wrong in one line and exit; what is no user's fault ends in a traceback."""
    told = error if isinstance(error, LlmcliError) else wrong_usage(error) or full_disk(error) or out_of_memory(error)
    if told is None:
        raise error
    if told.exit_code == EXIT_USAGE and torchrun().rank > 0:  # the first of several processes says the same
        sys.exit(EXIT_USAGE)
    hint = f" ({hint_of(told)})" if hint_of(told) else ""
    lines = traceback.format_exception(error) if verbose else []
    for line in [*"".join(lines).splitlines(), f"llmcli: {told.message}{hint}".replace("\n", " ")]:
        click.echo(visible(line), err=True)
    sys.exit(told.exit_code)


def visible(line: str) -> str:
    """A message may quote what stands in a file or a name: nothing in it may command the terminal."""
    if line.isprintable():
        return line
    from llmcli.render.text import one_line

    return one_line(line)


def wrong_usage(error: Exception) -> LlmcliError | None:
    """What click found wrong with the command line, in our form."""
    if not isinstance(error, click.ClickException):
        return None
    context = getattr(error, "ctx", None)
    near = getattr(error, "possibilities", None)  # an option's name was mistyped
    if near:
        return LlmcliError(error.message.rstrip("."), f"did you mean {' or '.join(near)}?", exit_code=error.exit_code)
    hint = f"see {context.command_path} --help" if context else ""
    return LlmcliError(plainly(error.format_message()), hint, exit_code=error.exit_code)


def full_disk(error: Exception) -> LlmcliError | None:
    """A write that found no room, whoever wrote."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return LlmcliError("no space left to write to", "free some, or write elsewhere")
    return None


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""Options may also stand in a config file (llmcli config --help) or in the environment: LLMCLI_MODEL for
    every command, LLMCLI_GENERATE_MODEL for one.

    \b
    Exit codes:
      0    done
      1    something went wrong, or a check failed
      2    the command line, or the config file, is wrong
      130  interrupted by Ctrl-C
      141  whoever read the output left, as head does""",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=print_version, help="Show versions and exit."
)
def cli() -> None:
    """Run a language model on your own machine, and see how it works.

    \b
    Examples:
      llmcli generate "Once upon a time"
      llmcli tour
      llmcli explain-step --help
    """


def main() -> None:
    """Entry point of the console script."""
    cli(prog_name="llmcli")
