"""What is typed in a chat: turns, and commands, each a line that begins with a slash."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.commands.shell.config_file import expanded
from llmcli.errors import LlmcliError, did_you_mean, usage_error

if TYPE_CHECKING:
    from llmcli.commands.chat.session import AnySession
    from llmcli.generation.conversation import Messages


@dataclass(frozen=True)
class Action:
    """``argument`` as /help shows it, what it does in a few words, and what does it."""

    argument: str
    help: str
    run: Callable[[AnySession, str], None]


def take(session: AnySession, text: str) -> None:
    """Do what was typed; an error costs no more than that. Raises EOFError where it was to leave."""
    before = session.conversation.messages
    try:
        if text.startswith("/") and not text.startswith("//"):
            act(session, text)
        elif text.strip() or session.raw:
            session.say(text[1:] if text.startswith("//") else text)
        if session.conversation.messages != before:
            session.save()
    except Exception as error:
        session.tell(error)


def act(session: AnySession, line: str) -> None:
    """Do what a line such as "/set temperature 0.5" says. Errors: no such command, or a wrong argument."""
    name, _, argument = line[1:].partition(" ")
    name = name.strip()
    if name not in ACTIONS:
        hint = (
            did_you_mean(f"/{name}", [f"/{known}" for known in ACTIONS])
            or "/help lists them; a text that begins with / is typed with //"
        )
        raise usage_error(f"there is no command /{name}", hint)
    ACTIONS[name].run(session, argument.strip())


def completions(session: AnySession, line: str) -> Sequence[str]:
    """What may stand in the place of the last word of ``line``: a command, or what /set can set."""
    command, space, word = line.partition(" ")
    if not line.startswith("/") or " " in word:
        return []
    if not space:
        return [f"/{name}" for name in ACTIONS if f"/{name}".startswith(command)]
    return [name for name in session.settings.names if command == "/set" and name.startswith(word)]


def show_help(session: AnySession, argument: str) -> None:
    from llmcli.render.chat import print_chat_commands

    print_chat_commands(
        [(f"/{name} {action.argument}".strip(), action.help) for name, action in ACTIONS.items()], sys.stderr
    )


def set_system(session: AnySession, argument: str) -> None:
    """Only if the template has a place for it: each refuses in words of its own, or fails."""
    from llmcli.text.chat_template import Message

    if session.raw:
        raise usage_error("--raw knows no system prompt", "a model with a chat template does")
    chat = session.conversation
    rest = tuple(message for message in chat.messages if message.role != "system")
    system = (Message("system", argument),) if argument else ()
    tried = rest or (Message("user", "?"),)
    try:
        chat.check((*system, *tried))
    except LlmcliError as error:
        chat.check(tried)  # raises what is not the system prompt's fault
        hint = "leave it out, and say it in your first turn"
        raise LlmcliError(f"{chat.name} knows no system prompt", hint) from error
    chat.messages = system + rest
    _note("the system prompt is set" if argument else "there is no system prompt")


def regenerate(session: AnySession, argument: str) -> None:
    messages = session.conversation.messages
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1].role != "user":
        raise usage_error("there is no reply to write anew", "say something first")
    session.answer(messages)


def undo(session: AnySession, argument: str) -> None:
    messages = session.conversation.messages
    asked = [n for n, message in enumerate(messages) if message.role == "user"]
    if not asked:
        raise usage_error("there is no turn to take back", "say something first")
    session.conversation.messages = messages[: asked[-1]]
    _note(f"taken back: {_beginning(messages[asked[-1]].content)}")


def save(session: AnySession, argument: str) -> None:
    from llmcli.text.transcript import write_transcript

    path = _path(argument)
    write_transcript(path, session.conversation.name, session.conversation.messages)
    _note(f"saved {path}")


def load(session: AnySession, argument: str) -> None:
    from llmcli.render.text import counted
    from llmcli.text.transcript import read_transcript

    path = _path(argument)
    resume(session, read_transcript(path))
    _note(f"loaded {path}: {counted(len(session.conversation.messages), 'message')}")


def resume(session: AnySession, messages: Messages) -> None:
    """Go on from ``messages``. Errors: the template refuses them."""
    if messages:
        session.conversation.check(messages)
    session.conversation.messages = messages
    if messages and messages[-1].role == "user":
        _note("the last message has no reply yet: /regenerate writes one")


def change(session: AnySession, argument: str) -> None:
    name, _, value = argument.partition(" ")
    value = value.strip()
    if not name or not value:
        raise usage_error("/set takes a name and a value", "as in /set temperature 0.5")
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    session.settings.set(name, value)
    _note(f"{name.removeprefix('--')} is {value}")


def probs(session: AnySession, argument: str) -> None:
    session.probs = not session.probs
    _note("probabilities are shown" if session.probs else "probabilities are no longer shown")


def explain(session: AnySession, argument: str) -> None:
    try:
        index = int(argument or -1)
    except ValueError:
        raise usage_error(f"{argument!r} is no number", "/explain 0 is the reply's first token") from None
    session.explain(index)


def tokens(session: AnySession, argument: str) -> None:
    from llmcli.render.chat import print_context_use

    chat = session.conversation
    if not chat.messages:
        _note(f"nothing was said yet; the model's context is {chat.context} tokens")
        return
    print_context_use(chat.messages, chat.sizes(), chat.context, sys.stderr)


def leave(session: AnySession, argument: str) -> None:
    raise EOFError


def _path(argument: str) -> Path:
    if not argument:
        raise usage_error("no file is named", "as in /save chat.json")
    return expanded(argument)


def _beginning(text: str, length: int = 40) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _note(text: str) -> None:
    from llmcli.render.terminal import note
    from llmcli.render.text import one_line

    note(one_line(text), sys.stderr)


ACTIONS = {
    "help": Action("", "list these commands", show_help),
    "system": Action("[TEXT]", "set the system prompt, or without TEXT take it away", set_system),
    "regenerate": Action("", "write the last reply anew", regenerate),
    "undo": Action("", "take the last turn back", undo),
    "save": Action("FILE", "save the chat as JSON", save),
    "load": Action("FILE", "go on with a saved chat in the place of this one", load),
    "set": Action("NAME VALUE", "change an option, as in /set temperature 0.5", change),
    "probs": Action("", "show the probabilities of what follows, or stop that", probs),
    "explain": Action("[N]", "show how the last token of the reply was chosen, or its Nth from 0", explain),
    "tokens": Action("", "count the tokens of each turn, and those left", tokens),
    "quit": Action("", "leave; so does Ctrl-D", leave),
}
