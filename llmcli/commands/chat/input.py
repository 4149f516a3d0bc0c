"""Reading the turns of a chat: from a terminal, with or without line editing, or from a pipe."""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from llmcli import render
from llmcli.commands.shell.config_file import config_folder
from llmcli.errors import LlmcliError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History

PROMPT, CONTINUATION = "> ", "... "
_QUOTED = re.compile(r'(\s*(?:/\w+\s+)?)"""(.*)"""\s*', re.DOTALL)
_OPENED = re.compile(r'\s*(?:/\w+\s+)?"""')


class TurnSource(Protocol):
    """A source of turns."""

    def read(self) -> str:
        """Return the next turn. Raises EOFError at the end, KeyboardInterrupt for Ctrl-C."""

    def busy(self) -> AbstractContextManager[None]:
        """A context in which the terminal does not echo what is typed: the next turn begins with it."""


def is_complete(text: str) -> bool:
    """Whether a turn is complete: its last line does not end in a backslash, and no triple quotes are open."""
    if _OPENED.match(text):
        return _QUOTED.fullmatch(text) is not None
    return not text.endswith("\\")


def joined(text: str) -> str:
    """A turn without the backslashes or quotes that continue it over several lines."""
    quoted = _QUOTED.fullmatch(text)
    if quoted:
        return quoted[1].lstrip() + quoted[2].removeprefix("\n").removesuffix("\n")
    return text.replace("\\\n", "\n")


class PlainInput:
    """Lines without editing, after a prompt if stdin is a terminal."""

    def __init__(self, line: Callable[[], str], prompt: TextIO | None) -> None:
        self._line = line  # returns "" at the end
        self._prompt = prompt
        self._ahead = ""  # typed before the prompt

    def read(self) -> str:
        text = self._next(PROMPT)
        if not text:
            raise EOFError
        text = _bare(text)
        while not is_complete(text) and (more := self._next(CONTINUATION)):
            text += "\n" + _bare(more)
        return joined(text)

    def _next(self, prompt: str) -> str:
        if self._prompt is not None:
            self._prompt.write(prompt)
            self._prompt.flush()
        if not self._ahead:
            return self._line()
        line, end, self._ahead = self._ahead.partition("\n")
        if self._prompt is not None:
            self._prompt.write(render.printable(line, self._prompt) + end)
            self._prompt.flush()
        return line + (end or self._line())

    @contextmanager
    def busy(self) -> Iterator[None]:
        with holding_keys():
            try:
                yield
            finally:
                self._ahead += _erased(typed_ahead())


def _bare(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _erased(typed: str) -> str:
    """Return typed keys as text: Backspace erases, other control characters are dropped."""
    found: list[str] = []
    for char in typed.replace("\r", "\n"):
        if char in "\x7f\b":
            del found[-1:]
        elif char.isprintable() or char in "\n\t":
            found.append(char)
    return "".join(found)


def on_posix_terminal() -> bool:
    """Whether stdin is a terminal with POSIX modes. A Windows console echoes only what a program reads."""
    return sys.platform != "win32" and sys.stdin is not None and sys.stdin.isatty()


@contextmanager
def holding_keys() -> Iterator[None]:
    """Within the context the terminal does not echo what is typed, and keeps it until it is read, even at Ctrl-C."""
    if not on_posix_terminal():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    modes = termios.tcgetattr(sys.stdin)
    modes[3] = modes[3] & ~(termios.ECHO | termios.ICANON) | termios.NOFLSH
    termios.tcsetattr(sys.stdin, termios.TCSANOW, modes)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def typed_ahead() -> str:
    """Return what was typed since ``holding_keys``."""
    data = b""
    while on_posix_terminal() and select.select([sys.stdin], [], [], 0)[0]:
        part = os.read(sys.stdin.fileno(), 4096)
        if not part:
            break
        data += part
    return data.decode("utf-8", "replace")


def read_pipe() -> str:
    """Return the next line of a pipe.

    Raises LlmcliError if the line is not UTF-8; the next call reads the line after it.
    """
    try:
        return sys.stdin.buffer.readline().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LlmcliError(f"a line of stdin is not valid UTF-8 at byte {error.start}", "convert it to UTF-8") from None


class EditedInput:
    """Lines with editing, a history that is kept on disk, and completion of commands by Tab."""

    def __init__(self, stream: TextIO, complete: Callable[[str], Sequence[str]]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output import create_output
        from prompt_toolkit.shortcuts import CompleteStyle

        output = create_output(stream)
        if hasattr(output, "enable_cpr"):
            output.enable_cpr = False  # requests the cursor position, which only menus need
        self._session: PromptSession[str] = PromptSession(
            history=_history(config_folder() / "chat_history"),
            completer=_completer(complete),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            multiline=True,
            prompt_continuation=lambda width, line, wraps: (
                "" if wraps else CONTINUATION
            ),  # a wrapped line is not a new one
            key_bindings=_keys(),
            output=output,
        )

    def read(self) -> str:
        return joined(self._session.prompt(PROMPT))

    def busy(self) -> AbstractContextManager[None]:
        return holding_keys()


def _keys() -> Any:
    """Enter sends a complete turn, Alt-Enter always starts a new line."""
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter", filter=has_focus(DEFAULT_BUFFER))
    def _(event: Any) -> None:
        buffer = event.current_buffer
        if is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.newline(copy_margin=False)

    @keys.add("escape", "enter", filter=has_focus(DEFAULT_BUFFER))
    def _(event: Any) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


def _completer(complete: Callable[[str], Sequence[str]]) -> Any:
    """A completer; ``complete`` returns the words that may replace the last word of a line."""
    from prompt_toolkit.completion import Completer, Completion
    from prompt_toolkit.document import Document

    class Commands(Completer):
        def get_completions(self, document: Document, event: Any) -> Iterator[Completion]:
            line = document.text_before_cursor
            last = line.split(" ")[-1]
            yield from (Completion(word, start_position=-len(last)) for word in complete(line))

    return Commands()


def _history(path: Path) -> History:
    """The lines of earlier chats, or of this one only if the file cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class OptionalHistory(FileHistory):
        def store_string(self, string: str) -> None:
            with suppress(OSError):  # a full disk must not end the chat
                super().store_string(string)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with path.open("ab"):
            return OptionalHistory(str(path))
    except OSError:
        return InMemoryHistory()


def turn_source(complete: Callable[[str], Sequence[str]]) -> TurnSource:
    """The source that fits stdin and the terminal."""
    if sys.stdin is None or not sys.stdin.isatty():
        return PlainInput(read_pipe, None) if sys.stdin is not None else PlainInput(lambda: "", None)
    screen = next((stream for stream in (sys.stderr, sys.stdout) if stream.isatty()), None)
    if screen is not None and render.animated(screen):
        return EditedInput(screen, complete)
    return PlainInput(sys.stdin.readline, screen)
