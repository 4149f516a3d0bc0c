"""What a chat shows beside its replies: its commands, and how much of the context it fills."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from llmcli.render.table import Cell, Column, print_table
from llmcli.render.terminal import print_line, styled
from llmcli.render.text import one_line

if TYPE_CHECKING:
    from llmcli.text.chat_template import Message

SPEAKERS = {"system": "system", "user": "you", "assistant": "reply"}
BEGINNING = 40  # characters of a message that are shown


def print_chat_commands(actions: Sequence[tuple[str, str]], stream: TextIO) -> None:
    """The commands, one a line, and how to type more than one line."""
    width = max(len(usage) for usage, _ in actions)
    for usage, help in actions:
        print_line(f"{usage:<{width}}  {help}", stream)
    print_line(
        'A line that ends in \\ goes on, as does what stands between """ and """; Alt-Enter begins a line.', stream
    )
    print_line("Ctrl-C stops a reply. A text that begins with / is typed with //.", stream)


def print_context_use(messages: Sequence[Message], sizes: Sequence[int], context: int, stream: TextIO) -> None:
    """One row a message, with the template's part before it, and what is left of the context.

    ``sizes`` has one number more than there are messages, or is the total alone.
    """
    used = sum(sizes)
    if len(sizes) > len(messages):
        columns = [Column("who", right=False), Column("tokens"), Column("text", right=False, optional=1)]
        rows = [
            [Cell(SPEAKERS[message.role]), Cell(str(size)), Cell(_beginning(message.content))]
            for message, size in zip(messages, sizes, strict=False)
        ]
        if sizes[-1]:
            rows.append([Cell("end"), Cell(str(sizes[-1])), Cell("")])
        print_table(columns, rows, stream)
    print_line(
        f"{used} of {context} tokens used, {max(context - used, 0)} left", stream, "dim" if styled(stream) else ""
    )


def _beginning(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= BEGINNING else f"{text[:BEGINNING]}…"
