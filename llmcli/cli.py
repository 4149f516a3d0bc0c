"""The command line: which commands there are, and how every error ends."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from llmcli import __version__
from llmcli.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, LlmcliError, out_of_memory

# Name -> one line for --help. A command's module is imported when it is called: some need torch.
COMMANDS = {
    "generate": "Continue a text, one token after the other.",
    "chat": "Talk with a model, turn by turn.",
    "tour": "How does a language model work? Eight stops.",
    "tokenize": "What does the model receive?",
    "neighbours": "Which tokens mean alike?",
    "attend": "What does a token look at?",
    "lens": "When does the answer appear, layer by layer?",
    "why": "What pushed this logit?",
    "explain-step": "Why this token?",
    "branch": "What if it had chosen another token?",
    "score": "Where was the model surprised?",
    "compare": "What did fine-tuning change?",
    "inspect": "What is this model, and does it fit?",
    "verify": "Is this model run right here?",
    "bench": "Measure how fast a model runs here.",
    "quantize": "Round a model's weights to 8 or 4 bits.",
    "train": "Train a small model of your own on text files.",
    "models": "List the models on disk.",
    "pull": "Download a model from the Hugging Face hub.",
    "rm": "Remove a downloaded model.",
}


class LazyGroup(click.Group):
    """A group whose commands are modules of ``llmcli.commands``, and whose errors are one line each."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"llmcli.commands.{name}"), name)
        for option in command.params:
            if isinstance(option, click.Option):
                option.envvar = environment_variable(name, option)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

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
            sys.stdout.flush()
            sys.exit(code if isinstance(code, int) else EXIT_OK)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except BrokenPipeError:
            # Whoever read our output has gone; Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_FAILURE)
        except (KeyboardInterrupt, click.Abort):
            sys.exit(EXIT_INTERRUPTED)
        except Exception as error:
            fail(error, verbose="--verbose" in arguments)


def environment_variable(command: str, option: click.Option) -> str:
    """LLMCLI_<COMMAND>_<OPTION>, by the option's first long name."""
    long = next((name for name in option.opts if name.startswith("--")), option.opts[0])
    return f"LLMCLI_{command}_{long.lstrip('-')}".replace("-", "_").upper()


def fail(error: Exception, *, verbose: bool) -> NoReturn:
    """Say what went wrong in one line and exit; what is no user's fault ends in a traceback."""
    told = error if isinstance(error, LlmcliError) else wrong_usage(error) or full_disk(error) or out_of_memory(error)
    if told is None:
        raise error
    if verbose:
        traceback.print_exception(error)
    hint = f" ({told.hint})" if told.hint else ""
    click.echo(f"llmcli: {told.message}{hint}".replace("\n", " "), err=True)
    sys.exit(told.exit_code)


def wrong_usage(error: Exception) -> LlmcliError | None:
    """What click found wrong with the command line, in our form."""
    if not isinstance(error, click.ClickException):
        return None
    context = getattr(error, "ctx", None)
    hint = f"see {context.command_path} --help" if context else ""
    return LlmcliError(error.format_message(), hint, exit_code=error.exit_code)


def full_disk(error: Exception) -> LlmcliError | None:
    """A write that found no room, whoever wrote."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return LlmcliError("no space left to write to", "free some, or write elsewhere")
    return None


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="llmcli")
def cli() -> None:
    """Run a language model on your own machine, and see how it works.

    Every option can also be set as LLMCLI_<COMMAND>_<OPTION> in the environment.
    """


def main() -> None:
    """Entry point of the console script."""
    cli(prog_name="llmcli")
