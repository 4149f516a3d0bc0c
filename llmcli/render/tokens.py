"""``tokenize``: a text's tokens, tokenizers side by side, and the merges that made each word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from llmcli.render.table import Cell, Column, print_table
from llmcli.render.terminal import print_check, print_line, styled
from llmcli.render.text import counted, token_label
from llmcli.text.bpe import replayed

if TYPE_CHECKING:
    from llmcli.explain.bpe_merges import MergesReport, WordMerges
    from llmcli.explain.report import VocabEntry
    from llmcli.explain.tokenization import Tokenization
    from llmcli.text.tokenizer import Token

LONGEST = 48  # characters of a word
WINDOW = 16  # symbols shown on either side of a merge: a word without spaces may be a whole text


def print_tokenize(reports: Sequence[Tokenization], stream: TextIO, notes: TextIO) -> None:
    """Print one tokenizer's view of a text, or those of several side by side.

    On a terminal, summaries and checks follow on ``stream``; elsewhere they go to ``notes``, so that ``stream`` gets
    nothing but the table.
    """
    target = stream if styled(stream) else notes
    if len(reports) == 1:
        print_tokenization(reports[0], stream, target)
        return
    print_side_by_side(reports, stream)
    for report in reports:
        _print_summary(report, target)


def print_tokenization(report: Tokenization, stream: TextIO, notes: TextIO | None = None) -> None:
    """Print a row for each token on ``stream``, then the summary and the check on ``notes`` (default: ``stream``)."""
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
    _print_summary(report, stream if notes is None else notes)


def _print_summary(report: Tokenization, stream: TextIO) -> None:
    print_line(tokenization_summary(report), stream, "dim")
    print_check(report.check, stream)


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


def _token_cell(token: Token) -> Cell:
    return Cell(token_label(token.text, token.bytes), style="dim" if token.special else "")


def print_merges(report: MergesReport, stream: TextIO) -> None:
    """The whole view."""
    words, merges = sum(word.count for word in report.words), sum(len(word.merges) for word in report.words)
    print_line(
        f"merges of {report.model}: how {counted(words, 'word')} became {counted(report.tokens, 'token')}", stream
    )
    columns = [
        Column("word", right=False),
        Column("times", optional=2),
        Column("rank"),
        Column("joined", right=False),
        Column("now", right=False),
    ]
    print_table(columns, [row for word in report.words for row in _rows(word)], stream)
    around = f"; tokens added to every text: {report.around}" if report.around else ""
    different, joined = counted(len(report.words), "different word"), counted(merges, "merge")
    print_line(f"{different}, {joined} of the tokenizer's {report.ranks}{around}.", stream)
    print_line("Rank: how early in training the pair was learnt. A word's pair of lowest rank is", stream, "dim")
    print_line("joined first, until none of its pairs has one; then each symbol is a token.", stream, "dim")
    print_check(report.check, stream)


def _rows(word: WordMerges) -> list[list[Cell]]:
    name, times = token_label(word.text, word.bytes), str(word.count)
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]} ({len(name) - LONGEST} more)"
    first = {"merged": "", "whole": "a token as it is", "added": "an added token"}[word.kind]
    changes = [(merge.at, merge.result) for merge in word.merges]
    rows = []
    for n, (places, symbols) in enumerate(replayed(word.symbols, changes)):
        merge = word.merges[n - 1] if n else None
        done = n == len(changes)
        rows.append(
            [
                Cell("" if n else name, name, style="bold"),
                Cell("" if n else times, times),
                Cell("" if merge is None else str(merge.rank)),
                Cell(first if merge is None else f"{_name(merge.left)} + {_name(merge.right)}"),
                Cell(_now(symbols, 0 if merge is None else places.index(merge.at)), style="green" if done else ""),
            ]
        )
    return rows


def _now(symbols: list[VocabEntry], at: int) -> str:
    """The symbols around the ``at``-th, and how many more there are on either side."""
    start, end = max(at - WINDOW, 0), at + WINDOW + 1
    shown = [_name(symbol) for symbol in symbols[start:end]]
    before, behind = start, len(symbols) - end
    return " ".join([*([f"({before} more)"] if before else []), *shown, *([f"({behind} more)"] if behind > 0 else [])])


def _name(symbol: VocabEntry) -> str:
    return token_label(symbol.text, symbol.bytes)
