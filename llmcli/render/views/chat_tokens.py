"""``tokenize --chat``: the tokens of a conversation by message, and those of several templates side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TextIO

from llmcli import explain
from llmcli.render.table import Cell, Column, print_table
from llmcli.render.terminal import drawn, print_check, print_line
from llmcli.render.text import counted, one_line, token_label

STYLES = {"special": "bold cyan", "template": "dim", "mixed": "yellow"}
MAX_LISTED = 8  # strings that look like special tokens


def print_tokenize_chat(
    reports: Sequence[explain.ChatTokenization], stream: TextIO, notes: TextIO | None = None
) -> None:
    """Print one model's view of a conversation, or those of several side by side.

    As for ``print_tokenize``, summaries and checks go to ``notes`` unless people read ``stream``.
    """
    target = stream if notes is None or drawn(stream) else notes
    if len(reports) == 1:
        print_chat_tokenization(reports[0], stream, target)
        return
    _print_side_by_side(reports, stream)
    for report in reports:
        _print_summary(report, target)


def print_chat_tokenization(report: explain.ChatTokenization, stream: TextIO, notes: TextIO | None = None) -> None:
    """Print a row for each token on ``stream``, then the summary and the check on ``notes`` (default: ``stream``)."""
    columns = [
        Column("#"),
        Column("id"),
        Column("token", right=False),
        Column("role", right=False, plain=("message", "role")),
        Column("part", right=False),
        Column("start:end", optional=1, plain=("start", "end")),
    ]
    rows, before = [], None
    for n, token in enumerate(report.tokens):
        key = (token.message, token.role)
        role = _role(report, token) if key != before else ""
        before = key
        rows.append(
            [
                Cell(str(n)),
                Cell(str(token.id)),
                _token_cell(token),
                Cell(role, ("" if token.message is None else str(token.message), token.role)),
                Cell(token.kind, style=STYLES.get(token.kind, "")),
                Cell(f"{token.start}:{token.end}", (str(token.start), str(token.end))),
            ]
        )
    print_table(columns, rows, stream)
    _print_summary(report, stream if notes is None else notes)


def _role(report: explain.ChatTokenization, token: explain.ChatToken) -> str:
    """What the first token of a message shows: the message's number and role."""
    if token.message is None:
        return "–"
    return "reply" if token.message == len(report.messages) else f"{token.message} {token.role}"


def _token_cell(token: explain.ChatToken) -> Cell:
    return Cell(token_label(token), style=STYLES.get(token.kind, ""))


def _print_side_by_side(reports: Sequence[explain.ChatTokenization], stream: TextIO) -> None:
    """Print the tokens of every model, with the same message in the same rows."""
    columns = [Column("role", right=False)]
    for report in reports:
        columns += [Column("id"), Column(report.model, right=False)]
    grouped = [_by_message(report) for report in reports]
    rows = []
    for key in sorted({key for groups in grouped for key in groups}):
        for n, tokens in enumerate(zip_longest(*(groups.get(key, []) for groups in grouped))):
            named = next((_role(r, t) for r, t in zip(reports, tokens, strict=True) if t is not None), "")
            row = [Cell(named if n == 0 else "", named)]
            for token in tokens:
                row += [Cell(""), Cell("")] if token is None else [Cell(str(token.id)), _token_cell(token)]
            rows.append(row)
    print_table(columns, rows, stream)


def _by_message(report: explain.ChatTokenization) -> dict[float, list[explain.ChatToken]]:
    """The tokens by the number of their message; those without one follow the message before them, with a half more."""
    groups: dict[float, list[explain.ChatToken]] = {}
    last = -1
    for token in report.tokens:
        last = last if token.message is None else token.message
        groups.setdefault(last + 0.5 if token.message is None else last, []).append(token)
    return groups


def _print_summary(report: explain.ChatTokenization, stream: TextIO) -> None:
    own = sum(token.kind not in ("template", "special") for token in report.tokens)
    special = sum(token.kind == "special" for token in report.tokens)
    print_line(
        f"{report.model}: {counted(len(report.tokens), 'token')}, {own} of the messages and {len(report.tokens) - own} "
        f"of the template, {special} of them special",
        stream,
        "dim",
    )
    for line in _remarks(report):
        print_line(line, stream, "yellow")
    print_check(report.check, stream)


def _remarks(report: explain.ChatTokenization) -> list[str]:
    """What a reader should know about the conversation."""
    lines = [] if report.doubled is None else [f"the template starts the conversation with {report.doubled} twice"]
    for found in report.lookalikes[:MAX_LISTED]:
        lines.append(f"message {found.message} contains “{one_line(found.text)}”: it is text here, not a special token")
    if len(report.lookalikes) > MAX_LISTED:
        lines.append(f"… and {len(report.lookalikes) - MAX_LISTED} more such texts")
    missing = [str(n) for n, message in enumerate(report.messages) if not message.found]
    if missing:
        which = f"message {missing[0]}" if len(missing) == 1 else f"messages {', '.join(missing)}"
        lines.append(f"the template changes, repeats or drops the text of {which}: its tokens are not attributed")
    elif any(token.message is None for token in report.tokens):
        lines.append("–: written by the template, and part of no message")
    return lines
