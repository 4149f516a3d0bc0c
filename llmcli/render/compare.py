"""Two models on one text for the eye: the text in the colours of the change, the largest changes, the totals."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from rich.text import Text

from llmcli.render.marks import AGAINST, FOR, HALF, signed_bar_cell
from llmcli.render.table import Cell, Column, number_cell, print_table
from llmcli.render.terminal import console, print_check, print_line, styled
from llmcli.render.text import escape_controls, token_label

if TYPE_CHECKING:
    from llmcli.explain.comparison import Compared, CompareReport
    from llmcli.explain.report import VocabEntry

NOTABLE = 0.5  # nats: below that a token keeps the terminal's own colour


def print_compare(report: CompareReport, stream: TextIO, *, top: int = 20) -> None:
    """The whole view, with the ``top`` largest changes in the order of the text (0: all)."""
    first, second = report.models
    print_line(f"compare: what does {second} expect that {first} does not?", stream)
    if styled(stream):
        _print_text(report, stream)
    shown = sorted(report.tokens, key=lambda token: -abs(token.delta))[: top or None]
    most = max(abs(token.delta) for token in shown)
    columns = [
        Column("#", optional=2),
        Column("token", right=False),
        Column("logprob", optional=3),
        Column("second's", optional=4),
        Column("change, nats"),
        Column(f"{'less':>{HALF}}│{'more':<{HALF}}", right=False, optional=5, plain="sign"),
        Column("KL, bits"),
        Column("favourites", right=False, optional=1),
    ]
    print_table(columns, [_row(token, most) for token in sorted(shown, key=lambda token: token.position)], stream)
    if len(shown) < len(report.tokens):
        print_line(f"the {len(shown)} largest changes of {len(report.tokens)} tokens; --top 0 lists all", stream, "dim")
    before, after = report.bits_per_byte
    count = len(report.tokens)
    others = f"{round(report.other_favourite * count)} of {count} places"
    print_line(
        f"{before:.4f} bits a byte, the second {after:.4f} ({after - before:+.4f}); "
        f"KL {report.mean_kl:.4f} bits a token; another favourite at {others}. "
        "The first token is not compared: nothing comes before it.",
        stream,
    )
    print_check(report.check, stream)


def _print_text(report: CompareReport, stream: TextIO) -> None:
    text = Text()
    for token in report.tokens:
        text.append(
            escape_controls(token.chunk), "" if abs(token.delta) < NOTABLE else FOR if token.delta > 0 else AGAINST
        )
    legend = Text.assemble(("more probable than before", FOR), "  ", ("less", AGAINST), f"  by {NOTABLE} nats or more")
    console(stream).print(text)
    console(stream).print(legend)


def _row(token: Compared, most: float) -> list[Cell]:
    before, after = (_named(piece) for piece in token.favourites)
    return [
        Cell(str(token.position)),
        Cell(_named(token.piece)),
        number_cell(token.logprobs[0], 2),
        number_cell(token.logprobs[1], 2),
        Cell(f"{token.delta:+.2f}", repr(token.delta)),
        signed_bar_cell(token.delta, most),
        number_cell(token.kl, 3),
        Cell(before if before == after else f"{before} → {after}", f"{before} → {after}"),
    ]


def _named(piece: VocabEntry) -> str:
    return token_label(piece.text, piece.bytes)
