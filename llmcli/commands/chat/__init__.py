"""``llmcli chat``: talk with a model, turn by turn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmcli.commands.chat.actions import completions, resume, set_system, take
from llmcli.commands.chat.lines import Lines, lines
from llmcli.commands.chat.server import server_session
from llmcli.commands.chat.session import AnySession, LocalSession
from llmcli.commands.chat.settings import SamplerSettings
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.distributed import SplitChoice, split_options
from llmcli.commands.options.endpoint import Endpoint, endpoint_options
from llmcli.commands.options.model import ModelChoice, find_model
from llmcli.commands.options.sampling import Sampling, sampling_options
from llmcli.commands.options.writable import check_writable
from llmcli.commands.shell.command import Command
from llmcli.commands.shell.help import heading
from llmcli.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, LlmcliError, usage_error

if TYPE_CHECKING:
    from llmcli.generation.conversation import Conversation
    from llmcli.text.chat_template import ChatTemplate


@click.command(cls=Command, together="share")
@heading("Chat")
@click.option("--system-prompt", "-s", metavar="TEXT", help="What the model is told before the first turn.")
@click.option("--raw", is_flag=True, help="Without a chat template: each turn continues one text, on a new line.")
@click.option(
    "--chat",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Go on with the chat in FILE if it is there, and save it after every turn.",
)
@split_options
@endpoint_options
@sampling_options
@heading("Length")
@click.option(
    "--max-tokens",
    "--max-new-tokens",
    "-n",
    type=click.IntRange(min=1),
    default=2048,
    show_default=True,
    help="Write at most so many tokens in a reply.",
)
@verbose_option
def chat(
    system_prompt: str | None,
    raw: bool,
    file: Path | None,
    choice: SplitChoice,
    endpoint: Endpoint,
    sampling: Sampling,
    max_tokens: int,
    verbose: bool,
) -> None:
    """Talk with a model that was taught to chat, or with --raw let any model go on with what you write.

    Ctrl-C stops a reply, Ctrl-D leaves, /help lists the commands. A line that ends in a backslash goes on
    in the next. Through a pipe, each line is a turn; replies go to stdout, everything else to stderr, and the
    exit code is 1 if a line could not be used.

    \b
    Examples:
      llmcli chat
      llmcli chat --raw --temperature 0.5 --chat story.json
      llmcli chat -m HuggingFaceTB/SmolLM2-135M-Instruct -s "Be brief."
    """
    if raw and system_prompt:
        raise usage_error("--raw knows no system prompt", "leave one of them out")
    if file is not None:
        check_writable("--chat", file)
    session: AnySession
    if endpoint.given:
        session = server_session(endpoint.open(), sampling, raw=raw, file=file, verbose=verbose)
        begin(session, system_prompt)
    else:
        session = local_session(choice, sampling, raw=raw, file=file, verbose=verbose)
        begin(session, system_prompt)
        warn_of_doubled(session.conversation)

    from llmcli.render.terminal import note

    seed = session.settings.seed
    help = "; /help lists the commands, Ctrl-D leaves" if sys.stdin is not None and sys.stdin.isatty() else ""
    note(f"{session.conversation.name}; seed {'not set' if seed is None else seed}{help}", sys.stderr)
    converse(session, lines(lambda line: completions(session, line)))


def local_session(
    choice: ModelChoice, sampling: Sampling, *, raw: bool, file: Path | None, verbose: bool
) -> LocalSession:
    """A chat with a model that runs here."""
    template = None if raw else template_of(choice)
    loaded = choice.open()

    from llmcli.generation.conversation import Conversation
    from llmcli.text.turns import Plain, Templated

    form = Plain(loaded.tokenizer) if template is None else Templated(template, loaded.tokenizer)
    settings = SamplerSettings(click.get_current_context(), sampling, loaded)
    return LocalSession(Conversation(loaded, form), settings, raw, file, verbose)


def template_of(choice: ModelChoice) -> ChatTemplate:
    """The model's chat template, before its weights are read. Errors: it has none."""
    from llmcli.hub.cache import name_of
    from llmcli.text.chat_template import find_template

    folder = find_model(choice.model, choice.offline)
    template = find_template(folder)
    if template is None:
        raise LlmcliError(
            f"{name_of(folder)} has no chat template: it was not taught to chat",
            "with --raw it goes on with what you write",
        )
    return template


def begin(session: AnySession, system_prompt: str | None) -> None:
    """The chat of --chat's file, if it is there, and the system prompt."""
    from llmcli.text.transcript import read_transcript

    if session.file is not None and session.file.exists():
        resume(session, read_transcript(session.file))
    if system_prompt:
        set_system(session, system_prompt)


def warn_of_doubled(conversation: Conversation) -> None:
    """Try the template before anything is typed; say so if it begins with the same special token twice."""
    from llmcli.render.terminal import note
    from llmcli.text.chat_template import Message
    from llmcli.text.turns import Templated

    form = conversation.form
    if not isinstance(form, Templated):
        return
    doubled = form.doubled(conversation.messages or (Message("user", "?"),))
    if doubled is not None:
        note(f"the chat template puts {doubled} twice before every conversation", sys.stderr)


def converse(session: AnySession, source: Lines) -> None:
    """Turn after turn, until the lines end. A chat that nobody types ends at Ctrl-C, and fails if one of them did."""
    from llmcli.render.terminal import note

    typed = sys.stdin is not None and sys.stdin.isatty()
    while typed or not session.interrupted:
        try:
            take(session, source.read())
        except EOFError:
            sys.exit(EXIT_FAILURE if session.failed and not typed else EXIT_OK)
        except LlmcliError as error:  # of a line that cannot be read
            session.tell(error)
        except KeyboardInterrupt:
            if not typed:
                break
            note("Ctrl-D or /quit leaves", sys.stderr)
    sys.exit(EXIT_INTERRUPTED)
