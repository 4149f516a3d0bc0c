"""Where the turns of a chat come from: a terminal with or without line editing, or a pipe."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from llmcli.commands.shell.config_file import config_folder
from llmcli.errors import LlmcliError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History

PROMPT, MORE = "> ", "... "
_QUOTED = re.compile(r'(\s*(?:/\w+\s+)?)"""(.*)"""\s*', re.DOTALL)
_OPENED = re.compile(r'\s*(?:/\w+\s+)?"""')


class Lines(Protocol):
    """A source of turns."""

    def read(self) -> str:
        """The next turn, whole. Raises EOFError at the end, KeyboardInterrupt for Ctrl-C."""


def is_whole(text: str) -> bool:
    """Whether a turn is at its end: no backslash at the end of its last line, no triple quotes left open."""
    if _OPENED.match(text):
        return _QUOTED.fullmatch(text) is not None
    return not text.endswith("\\")


def unfolded(text: str) -> str:
    """A turn without the marks that let it run over several lines."""
    quoted = _QUOTED.fullmatch(text)
    if quoted:
        return quoted[1].lstrip() + quoted[2].removeprefix("\n").removesuffix("\n")
    return text.replace("\\\n", "\n")


class Plain:
    """Whole lines as they come, after a plain prompt if there is somebody to see it."""

    def __init__(self, line: Callable[[], str], prompt: TextIO | None) -> None:
        self._line = line  # "" at the end
        self._prompt = prompt

    def read(self) -> str:
        text = self._next(PROMPT)
        if not text:
            raise EOFError
        text = _bare(text)
        while not is_whole(text) and (more := self._next(MORE)):
            text += "\n" + _bare(more)
        return unfolded(text)

    def _next(self, prompt: str) -> str:
        if self._prompt is not None:
            self._prompt.write(prompt)
            self._prompt.flush()
        return self._line()


def _bare(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def piped() -> str:
    """The next line of a pipe. Errors: not UTF-8, which costs that line alone."""
    try:
        return sys.stdin.buffer.readline().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LlmcliError(f"a line of stdin is not valid UTF-8 at byte {error.start}", "convert it first") from None


class Edited:
    """Lines that can be edited, with a history that is kept, and commands that Tab completes."""

    def __init__(self, stream: TextIO, complete: Callable[[str], Sequence[str]]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output import create_output
        from prompt_toolkit.shortcuts import CompleteStyle

        output = create_output(stream)
        if hasattr(output, "enable_cpr"):
            output.enable_cpr = False  # asking where the cursor is: for menus, which we have not
        self._session: PromptSession[str] = PromptSession(
            history=_history(config_folder() / "chat_history"),
            completer=_completer(complete),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            multiline=True,
            prompt_continuation=lambda width, line, wraps: "" if wraps else MORE,  # long lines are only wrapped
            key_bindings=_keys(),
            output=output,
        )

    def read(self) -> str:
        return unfolded(self._session.prompt(PROMPT))


def _keys() -> Any:
    """Enter sends a turn that is whole, Alt-Enter begins a new line in any."""
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter", filter=has_focus(DEFAULT_BUFFER))
    def _(event: Any) -> None:
        buffer = event.current_buffer
        if is_whole(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.newline(copy_margin=False)

    @keys.add("escape", "enter", filter=has_focus(DEFAULT_BUFFER))
    def _(event: Any) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


def _completer(complete: Callable[[str], Sequence[str]]) -> Any:
    """``complete`` gives the words that may stand at the end of a line, in the place of its last."""
    from prompt_toolkit.completion import Completer, Completion
    from prompt_toolkit.document import Document

    class Commands(Completer):
        def get_completions(self, document: Document, event: Any) -> Iterator[Completion]:
            line = document.text_before_cursor
            last = line.split(" ")[-1]
            yield from (Completion(word, start_position=-len(last)) for word in complete(line))

    return Commands()


def _history(path: Path) -> History:
    """What was typed in earlier chats; of this one alone where the file cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with path.open("ab"):
            return FileHistory(str(path))
    except OSError:
        return InMemoryHistory()


def lines(complete: Callable[[str], Sequence[str]]) -> Lines:
    """The source that suits how the program runs."""
    from llmcli.render.terminal import styled

    if sys.stdin is None or not sys.stdin.isatty():
        return Plain(piped, None) if sys.stdin is not None else Plain(lambda: "", None)
    screen = next((stream for stream in (sys.stderr, sys.stdout) if stream.isatty()), None)
    if screen is not None and styled(screen):
        return Edited(screen, complete)
    return Plain(sys.stdin.readline, screen)
