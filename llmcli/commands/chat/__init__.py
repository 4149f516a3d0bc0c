"""``llmcli chat``: chat with a model, turn by turn."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import click

from llmcli import generation, hub, render, text
from llmcli.commands.chat.actions import completions, handle_line, resume, set_system
from llmcli.commands.chat.input import TurnSource, turn_source
from llmcli.commands.chat.server import server_session
from llmcli.commands.chat.session import AnySession, LocalSession
from llmcli.commands.chat.settings import REPLY_TOKENS, SamplerSettings
from llmcli.commands.options.changes import Changes, change_options
from llmcli.commands.options.common import is_verbose, verbose_option
from llmcli.commands.options.distributed import DistributedModelChoice, distributed_model_options, follow
from llmcli.commands.options.endpoint import Endpoint, endpoint_options
from llmcli.commands.options.grammar import GrammarChoice
from llmcli.commands.options.model import ModelChoice
from llmcli.commands.options.run_log import Logging, Setup, log_option, own_settings
from llmcli.commands.options.sampling import Sampling, sampling_options
from llmcli.commands.options.template import Template, template_of, template_options
from llmcli.commands.options.thinking import Think, thinking_options
from llmcli.commands.options.writable import check_writable
from llmcli.commands.shell.command import Command
from llmcli.commands.shell.help import heading
from llmcli.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, LlmcliError, usage_error

SHIPPED = 'This model writes short stories and often misses details. Try: "Write a bedtime story about a lighthouse."'

RAW = "use --raw to let it continue what you write, or give it a template with --template"


@click.command(cls=Command, together=follow)
@heading("Chat")
@click.option("--system-prompt", "-s", metavar="TEXT", help="Instructions for the model, before the first turn.")
@click.option("--raw", is_flag=True, help="Use no chat template: each turn continues one text, on a new line.")
@click.option(
    "--chat",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Continue the chat in FILE if it exists, and save it after every turn.",
)
@template_options
@thinking_options
@distributed_model_options
@change_options
@endpoint_options
@sampling_options
@heading("Length")
@click.option(
    "--max-tokens",
    "--max-new-tokens",
    "-n",
    type=click.IntRange(min=1),
    help=f"Maximum number of tokens per reply.  [default: the model's, else {REPLY_TOKENS}]",
)
@log_option
@verbose_option
def chat(
    system_prompt: str | None,
    raw: bool,
    file: Path | None,
    template: Template,
    think: Think,
    choice: DistributedModelChoice,
    changes: Changes,
    endpoint: Endpoint,
    sampling: Sampling,
    max_tokens: int | None,
    logging: Logging,
) -> None:
    """Chat with a model. With --raw, any model continues what you write.

    Ctrl-C stops a reply, Ctrl-D exits, /help lists the commands. A line that ends in a backslash continues on the
    next line. From a pipe, each line is a turn; replies go to stdout, everything else to stderr, and the exit code is
    1 if any turn fails.

    \b
    Examples:
      llmcli chat
      llmcli chat --raw --temperature 0.5 --chat story.json
      llmcli chat -m HuggingFaceTB/SmolLM2-135M-Instruct -s "Be brief."
    """
    if raw and system_prompt:
        raise usage_error("--raw does not use a system prompt", "omit --raw or --system-prompt")
    if raw and think.given:
        raise usage_error("--raw uses no chat template, so there is no thinking", "omit --raw, or the options for it")
    if raw and template.given:
        raise usage_error("--raw uses no chat template", "omit --raw, or --template and --template-arg")
    choice.exclude(changes.option or "", changes.option)
    if file is not None:
        check_writable("--chat", file)
    with ExitStack() as stack:
        chat_file = None if file is None else stack.enter_context(text.ChatFile(file))
        session: AnySession
        if endpoint.given:
            session = server_session(endpoint.open(), sampling, logging, raw=raw, file=chat_file, verbose=is_verbose())
            if think.given:
                session.set_think(think)
            begin(session, system_prompt)
            shipped = False
        else:
            found = None if raw else template_of(choice, RAW, template)  # before the weights are loaded
            session = local_session(
                choice, changes, sampling, found, think, logging, file=chat_file, verbose=is_verbose()
            )
            begin(session, system_prompt)
            warn_about_doubled_token(session.conversation)
            shipped = is_shipped(session.conversation.loaded)
        start(session, shipped=shipped)


def start(session: AnySession, *, shipped: bool) -> None:
    """Introduce the chat in notes, and handle its turns until the input ends."""
    seed = session.settings.seed
    help = "; /help lists the commands, Ctrl-D exits" if sys.stdin is not None and sys.stdin.isatty() else ""
    render.note(f"{session.conversation.name}; seed {'not set' if seed is None else seed}{help}", sys.stderr)
    if shipped:
        render.note(SHIPPED, sys.stderr)
    converse(session, turn_source(lambda line: completions(session, line)))


def local_session(
    choice: ModelChoice,
    changes: Changes,
    sampling: Sampling,
    template: text.ChatTemplate | None,
    think: Think,
    logging: Logging,
    *,
    file: text.ChatFile | None,
    verbose: bool,
) -> LocalSession:
    """A chat with a local model; without a ``template`` each turn continues one text."""
    loaded = changes.apply(choice.open())

    form = text.PlainFormat(loaded.tokenizer) if template is None else text.TemplateFormat(template, loaded.tokenizer)
    settings = SamplerSettings(click.get_current_context(), sampling, loaded)
    thinking = None if template is None else text.thinking_of(template, loaded.tokenizer)
    conversation = generation.Conversation(loaded, form, thinking)

    def log(reply: generation.Reply) -> None:
        limits = (settings.max_tokens, loaded.defaults.stop, False)
        own = own_settings(conversation.loaded)
        setup = Setup(choice, changes, settings.sampling, GrammarChoice(None, None), *limits, own)
        prompt, seeds = reply.messages[-1].content, {reply.sampler.seed: reply.generation}
        budget = "its thoughts had a budget" if session.think.budget is not None else ""
        logging.keep(conversation.loaded, setup, prompt, list(reply.prompt), seeds, budget)

    session = LocalSession(conversation, settings, template is None, file, verbose, log, template=template)
    if think.given:
        session.set_think(think)
    return session


def is_shipped(loaded: generation.LoadedModel) -> bool:
    """Return whether a model is one that ships with llmcli, without an adapter."""
    return hub.shipped().get(loaded.name) == loaded.folder


def begin(session: AnySession, system_prompt: str | None) -> None:
    """Load the chat in --chat's file, or create the file, and set the system prompt."""
    if session.file is not None:
        resume(session, session.file.read())
        session.file.reserve(session.conversation.name)
    if system_prompt:
        set_system(session, system_prompt)


def warn_about_doubled_token(conversation: generation.Conversation) -> None:
    """Warn if the template starts with the same special token twice, before anything is typed."""
    form = conversation.form
    if not isinstance(form, text.TemplateFormat):
        return
    doubled = form.doubled_token(conversation.messages or (text.Message("user", "?"),))
    if doubled is not None:
        render.note(f"the chat template starts every conversation with {doubled} twice", sys.stderr)


def converse(session: AnySession, source: TurnSource) -> None:
    """Handle turn after turn until the input ends. Piped input also ends at Ctrl-C, and fails if any turn failed.

    Raises LlmcliError if piped input is empty.
    """
    interactive, empty = sys.stdin is not None and sys.stdin.isatty(), True
    while interactive or not session.interrupted:
        try:
            line = source.read()
            empty = False
            with source.busy():
                handle_line(session, line)
        except EOFError:
            if empty and not interactive:
                raise usage_error("stdin is empty", "write a turn in each line") from None
            sys.exit(EXIT_FAILURE if session.failed and not interactive else EXIT_OK)
        except LlmcliError as error:  # the line cannot be read
            session.report(error)
        except KeyboardInterrupt:
            if not interactive:
                break
            render.note("press Ctrl-D or type /quit to exit", sys.stderr)
    sys.exit(EXIT_INTERRUPTED)
