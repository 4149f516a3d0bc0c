"""What a chat prints besides its replies: its commands, and how much of the context it uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from llmcli import text
from llmcli.render.table import Cell, Column, print_table
from llmcli.render.terminal import print_line, styled
from llmcli.render.text import one_line

SPEAKERS = {"system": "system", "user": "you", "assistant": "reply"}
EXCERPT = 40  # characters shown of a message


def print_chat_commands(actions: Sequence[tuple[str, str]], stream: TextIO) -> None:
    """Print the chat's commands, one per line, and how to type several lines."""
    width = max(len(usage) for usage, _ in actions)
    for usage, help in actions:
        print_line(f"{usage:<{width}}  {help}", stream)
    print_line('To write several lines, end each with \\, enclose them in """, or press Alt-Enter.', stream)
    print_line("Ctrl-C stops a reply. To send a text that starts with /, type //.", stream)


def print_context_use(messages: Sequence[text.Message], sizes: Sequence[int], context: int, stream: TextIO) -> None:
    """Print the tokens of each message, including the template's tokens before it, and what is left of the context.

    ``sizes`` has an entry per message and one for the template's end, or a single one, the total.
    """
    used = sum(sizes)
    if len(sizes) > len(messages):
        columns = [Column("who", right=False), Column("tokens"), Column("text", right=False, optional=1)]
        rows = [
            [Cell(SPEAKERS[message.role]), Cell(str(size)), Cell(_excerpt(message.content))]
            for message, size in zip(messages, sizes, strict=False)
        ]
        if sizes[-1]:
            rows.append([Cell("end"), Cell(str(sizes[-1])), Cell("")])
        print_table(columns, rows, stream)
    print_line(
        f"{used} of {context} tokens used, {max(context - used, 0)} left", stream, "dim" if styled(stream) else ""
    )


def _excerpt(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}…"
