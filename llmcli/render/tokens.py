"""Tokens for the eye: a text's tokens, tokenizers side by side, and the table of ``generate --probs``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from llmcli.render.check import print_check
from llmcli.render.counted import counted
from llmcli.render.table import UNKNOWN, Cell, Column, print_table, probability
from llmcli.render.terminal import band, label, say, styled

if TYPE_CHECKING:  # types alone: torch must not come with them
    from llmcli.explain.rivals import TokenReport
    from llmcli.explain.tokens import Tokenization
    from llmcli.text.tokenizer import Token


def print_tokens(reports: Sequence[Tokenization], stream: TextIO, beside: TextIO) -> None:
    """One tokenizer's view, or several side by side.

    What is no table, the check among it, goes to the stream for the eye, and ``beside`` the table elsewhere.
    """
    if len(reports) == 1:
        print_tokenization(reports[0], stream)
    else:
        print_side_by_side(reports, stream)
    target = stream if styled(stream) else beside
    for report in reports:
        say(tokenization_summary(report), target, "dim")
        print_check(report.check, target)


def print_tokenization(report: Tokenization, stream: TextIO) -> None:
    """One row a token."""
    columns = [Column("#"), Column("id"), Column("token", right=False), Column("bytes", right=False), Column("from:to")]
    rows = [
        [
            Cell(str(n)),
            Cell(str(token.id)),
            _token_cell(token),
            Cell(token.bytes.hex(" "), token.bytes.hex()),
            Cell(f"{token.start}:{token.end}"),
        ]
        for n, token in enumerate(report.tokens)
    ]
    print_table(columns, rows, stream)


def tokenization_summary(report: Tokenization) -> str:
    """Count, and bytes per token."""
    unknown = f", of which {report.unknown} unknown to the tokenizer" if report.unknown else ""
    tokens, size = counted(len(report.tokens), "token"), counted(report.text_bytes, "byte")
    return f"{report.model}: {tokens}{unknown}; {size} of text, {report.bytes_per_token:.2f} bytes a token"


def print_side_by_side(reports: Sequence[Tokenization], stream: TextIO) -> None:
    """One row a place in the list, one pair of columns a tokenizer."""
    columns = [Column("#")]
    for report in reports:
        columns += [Column("id"), Column(report.model, right=False)]
    rows = []
    for n in range(max(len(report.tokens) for report in reports)):
        row = [Cell(str(n))]
        for report in reports:
            if n < len(report.tokens):
                row += [Cell(str(report.tokens[n].id)), _token_cell(report.tokens[n])]
            else:
                row += [Cell(""), Cell("")]
        rows.append(row)
    print_table(columns, rows, stream)


def print_probabilities(reports: Sequence[TokenReport], stream: TextIO) -> None:
    """One row a generated token: its probability and rank, and the tokens that were likelier or next."""
    columns = [
        Column("#"),
        Column("id", optional=2),
        Column("token", right=False),
        Column("p"),
        Column("", right=False, optional=-3),
        Column("rank", optional=-2),
        Column("final p", optional=1),
        Column("most probable", right=False, optional=-1),
    ]
    rows = []
    for report in reports:
        style, sign = ("", "") if report.prob is None else band(report.prob)
        rivals = "  ".join(
            f"{label(rival.text, rival.bytes) or UNKNOWN.shown} {_brief(rival.prob)}" for rival in report.top
        )
        rows.append(
            [
                Cell(str(report.index)),
                UNKNOWN if report.id is None else Cell(str(report.id)),
                Cell(label(report.text, report.bytes), style=style),
                UNKNOWN if report.prob is None else probability(report.prob),
                Cell(sign, style=style),
                UNKNOWN if report.rank is None else Cell(str(report.rank)),
                UNKNOWN if report.final_prob is None else probability(report.final_prob),
                Cell(rivals),
            ]
        )
    print_table(columns, rows, stream)


def _brief(prob: float) -> str:
    """A rival's probability in four characters; never 0.00 for one above zero."""
    return f"{prob:.2f}" if prob >= 0.005 or prob == 0 else "<.01"


def _token_cell(token: Token) -> Cell:
    return Cell(label(token.text, token.bytes), style="dim" if token.special else "")
