"""What a user can type in a chat: turns, and commands that start with a slash."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli import generation, render, text
from llmcli.commands.options.thinking import parse_think_argument
from llmcli.commands.shell.config_file import expand_user
from llmcli.errors import LlmcliError, did_you_mean, usage_error

if TYPE_CHECKING:
    from llmcli.commands.chat.session import AnySession


@dataclass(frozen=True)
class Action:
    """A command of the chat: its ``argument`` and ``help`` as /help shows them, and the function that runs it."""

    argument: str
    help: str
    run: Callable[[AnySession, str], None]


def handle_line(session: AnySession, text: str) -> None:
    """Run a command or answer a turn. An error is reported and does not end the chat. Raises EOFError for /quit."""
    before = session.conversation.messages
    try:
        if text.startswith("/") and not text.startswith("//"):
            run_command(session, text)
        elif text.strip() or session.raw:
            session.say(text[1:] if text.startswith("//") else text)
        if session.conversation.messages != before:
            session.save()
    except Exception as error:
        session.report(error)


def run_command(session: AnySession, line: str) -> None:
    """Run a line such as "/set temperature 0.5". Raises LlmcliError if the command or its argument is invalid."""
    name, _, argument = line[1:].partition(" ")
    name = name.strip()
    if name not in ACTIONS:
        hint = (
            did_you_mean(f"/{name}", [f"/{known}" for known in ACTIONS])
            or "/help lists the commands; to send a text that starts with /, type //"
        )
        raise usage_error(f"there is no command /{name}", hint)
    ACTIONS[name].run(session, argument.strip())


def completions(session: AnySession, line: str) -> Sequence[str]:
    """Completions of the last word of ``line``: commands, and the names that /set takes."""
    command, space, word = line.partition(" ")
    if not line.startswith("/") or " " in word:
        return []
    if not space:
        return [f"/{name}" for name in ACTIONS if f"/{name}".startswith(command)]
    return [name for name in session.settings.names if command == "/set" and name.startswith(word)]


def show_help(session: AnySession, argument: str) -> None:
    render.print_chat_commands(
        [(f"/{name} {action.argument}".strip(), action.help) for name, action in ACTIONS.items()], sys.stderr
    )


def system(session: AnySession, argument: str) -> None:
    """Show the system prompt, or set it to ``argument``; two quotes remove it."""
    if argument:
        set_system(session, "" if argument in ('""', "''") else argument)
        return
    messages: generation.Messages = session.conversation.messages
    found = [message.content for message in messages if message.role == "system"]
    render.note(f"system prompt: {found[0]}" if found else "no system prompt; /system TEXT sets one", sys.stderr)


def set_system(session: AnySession, argument: str) -> None:
    """Set the system prompt; an empty ``argument`` removes it. Raises LlmcliError if the template has none."""
    if session.raw:
        raise usage_error("--raw does not use a system prompt", "use a model with a chat template")
    chat = session.conversation
    rest = tuple(message for message in chat.messages if message.role != "system")
    system = (text.Message("system", argument),) if argument else ()
    probe = rest or (text.Message("user", "?"),)
    try:
        chat.check((*system, *probe))
    except LlmcliError as error:
        chat.check(probe)  # raises unless the system prompt is the cause
        hint = "put the instructions into your first turn"
        raise LlmcliError(f"{chat.name} has no system prompt", hint) from error
    chat.messages = system + rest
    _note("system prompt set" if argument else "system prompt removed")


def regenerate(session: AnySession, argument: str) -> None:
    messages = session.conversation.messages
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1].role != "user":
        raise usage_error("there is no reply to regenerate", "send a message first")
    session.answer(messages)


def undo(session: AnySession, argument: str) -> None:
    messages = session.conversation.messages
    user_turns = [n for n, message in enumerate(messages) if message.role == "user"]
    if not user_turns:
        raise usage_error("there is no turn to undo", "send a message first")
    session.conversation.messages = messages[: user_turns[-1]]
    _note(f"undone: {_excerpt(messages[user_turns[-1]].content)}")


def save(session: AnySession, argument: str) -> None:
    path = _path(argument)
    if session.file is not None and session.file.is_at(path):
        session.save()
    else:
        text.write_transcript(path, session.conversation.name, session.conversation.messages)
    _note(f"saved {path}")


def load(session: AnySession, argument: str) -> None:
    path = _path(argument)
    resume(session, text.read_transcript(path))
    _note(f"loaded {path}: {render.counted(len(session.conversation.messages), 'message')}")


def resume(session: AnySession, messages: generation.Messages) -> None:
    """Continue from ``messages``. Raises LlmcliError if the template rejects them."""
    if messages:
        session.conversation.check(messages)
    session.conversation.messages = messages
    if messages and messages[-1].role == "user":
        _note("the last message has no reply yet; /regenerate generates one")


def change(session: AnySession, argument: str) -> None:
    """Set an option, show its value, or show the values of all options."""
    name, _, value = argument.partition(" ")
    value = value.strip()
    if not value:
        names = [name] if name else session.settings.names
        lines = [f"{each.removeprefix('--')}: {session.settings.shown(each)}" for each in names]
        render.note("\n".join(map(render.one_line, lines)), sys.stderr)
        return
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    session.settings.set(name, value)
    _note(f"{name.removeprefix('--')} set to {value}")


def probs(session: AnySession, argument: str) -> None:
    session.probs = not session.probs
    _note("probabilities on" if session.probs else "probabilities off")


def think(session: AnySession, argument: str) -> None:
    """Turn thinking on or off, or limit its tokens."""
    session.set_think(parse_think_argument(argument, session.think))
    _note(f"thinking: {session.think}")


def explain(session: AnySession, argument: str) -> None:
    try:
        index = int(argument or -1)
    except ValueError:
        raise usage_error(f"{argument!r} is not a number", "/explain 0 explains the reply's first token") from None
    session.explain(index)


def tokens(session: AnySession, argument: str) -> None:
    chat = session.conversation
    if not chat.messages:
        _note(f"the chat is empty; the model's context is {chat.context} tokens")
        return
    render.print_context_use(chat.messages, chat.sizes(), chat.context, sys.stderr)


def leave(session: AnySession, argument: str) -> None:
    raise EOFError


def _path(argument: str) -> Path:
    if not argument:
        raise usage_error("the command needs a file name", "for example /save chat.json")
    return expand_user(argument)


def _excerpt(text: str, length: int = 40) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _note(text: str) -> None:
    render.note(render.one_line(text), sys.stderr)


ACTIONS = {
    "help": Action("", "list the commands", show_help),
    "system": Action("[TEXT]", 'show the system prompt, or set it; "" removes it', system),
    "regenerate": Action("", "generate the last reply again", regenerate),
    "undo": Action("", "remove the last turn", undo),
    "save": Action("FILE", "save the chat as JSON", save),
    "load": Action("FILE", "replace this chat with a saved one", load),
    "set": Action("[NAME [VALUE]]", "show all options or one, or change it: /set temperature 0.5", change),
    "probs": Action("", "turn the display of probabilities on or off", probs),
    "think": Action("[on|off|N]", "turn thinking on or off, or end thoughts after N tokens", think),
    "explain": Action("[N]", "show how the reply's last token was chosen, or its Nth, counted from 0", explain),
    "tokens": Action("", "show the tokens of each turn, and how many are left", tokens),
    "quit": Action("", "exit, as Ctrl-D does", leave),
    "exit": Action("", "the same as /quit", leave),
}
