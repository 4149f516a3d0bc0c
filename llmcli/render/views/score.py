"""``score``: a text colored by how surprising its tokens are, the most surprising ones, and the totals."""

from __future__ import annotations

from typing import TextIO

from rich.text import Text

from llmcli import explain
from llmcli.render.generation import print_server_limits
from llmcli.render.marks import print_legend, surprisal_band
from llmcli.render.numbers import compact, fixed
from llmcli.render.table import UNKNOWN, Cell, Column, number_cell, print_table, probability_cell
from llmcli.render.terminal import console, drawn, print_check, print_line
from llmcli.render.text import counted, escape_controls, token_label


def print_score(report: explain.ScoreReport, stream: TextIO, *, top: int = 20) -> None:
    """Print the whole view: the text, its ``top`` most surprising tokens in text order (0: all), and the totals."""
    print_line(f"score: where was {report.model} surprised?", stream)
    if drawn(stream):
        _print_text(report, stream)
    print_legend(stream, in_bits=True)
    shown = sorted(report.tokens, key=lambda token: -token.surprisal)[: top or None]
    columns = [
        Column("#", optional=3),
        Column("id", optional=4),
        Column("token", right=False),
        Column("surprisal, bits"),
        Column("rank"),
        Column("", right=False, plain="sign"),
        Column("entropy, bits", optional=2),
        Column("top token", right=False),
        Column("its p", optional=1),
    ]
    print_table(columns, [_row(token) for token in sorted(shown, key=lambda token: token.position)], stream)
    if len(shown) < len(report.tokens):
        print_line(f"the {len(shown)} most surprising of {len(report.tokens)} tokens; --top 0 shows all", stream, "dim")
    print_line(
        f"{counted(len(report.tokens), 'token')}, {fixed(report.bits, 1)} bits: "
        f"{fixed(report.bits_per_token, 3)} per token, "
        f"{fixed(report.bits_per_byte, 4)} per byte; perplexity {compact(report.perplexity, 6)}. "
        f"The first token, {token_label(report.first)}, is not scored: it has no context.",
        stream,
    )
    print_windows(report.windows, stream)
    if any(token.entropy is None for token in report.tokens):
        print_server_limits(stream, "the entropy")
    print_check(report.check, stream)


def print_windows(windows: explain.Windows | None, stream: TextIO) -> None:
    """Print in which windows a text longer than the context was read; nothing if it fits into the context."""
    if windows is not None:
        print_line(
            f"The text is longer than the context of {windows.size} tokens: it is read in {windows.count} windows that "
            f"overlap by {windows.overlap}, so each token is predicted from all earlier tokens or at least "
            f"{windows.overlap}.",
            stream,
        )


def _print_text(report: explain.ScoreReport, stream: TextIO) -> None:
    text = Text.assemble((token_label(report.first), "dim"))
    for token in report.tokens:
        text.append(escape_controls(token.chunk), surprisal_band(token.surprisal)[0])
    console(stream).print(text)


def _row(token: explain.ScoredToken) -> list[Cell]:
    style, sign = surprisal_band(token.surprisal)
    favourite = token.favourite
    return [
        Cell(str(token.position)),
        UNKNOWN if token.piece.id is None else Cell(str(token.piece.id)),
        Cell(token_label(token.piece), style=style) if token.piece.bytes else UNKNOWN,
        number_cell(token.surprisal, 2),
        UNKNOWN if token.rank is None else Cell(str(token.rank)),
        Cell(sign, style=style),
        UNKNOWN if token.entropy is None else number_cell(token.entropy, 2),
        UNKNOWN if favourite is None else Cell(token_label(favourite) or UNKNOWN.shown),
        UNKNOWN if token.p_favourite is None else probability_cell(token.p_favourite),
    ]
