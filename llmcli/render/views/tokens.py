"""``tokenize``: a text's tokens, several tokenizers side by side, and the merges that built each word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TextIO

from llmcli import explain, text
from llmcli.render.table import Cell, Column, print_table
from llmcli.render.terminal import drawn, print_check, print_line
from llmcli.render.text import counted, token_label

MAX_WORD = 48  # characters shown of a word
WINDOW = 16  # symbols shown on either side of a merge: without spaces, a word may be a whole text


def print_tokenize(reports: Sequence[explain.Tokenization], stream: TextIO, notes: TextIO) -> None:
    """Print one tokenizer's view of a text, or those of several side by side.

    On a terminal, summaries and checks follow on ``stream``; elsewhere they go to ``notes``, so that ``stream`` gets
    nothing but the table.
    """
    target = stream if drawn(stream) else notes
    if len(reports) == 1:
        print_tokenization(reports[0], stream, target)
        return
    print_side_by_side(reports, stream)
    for report in reports:
        _print_summary(report, target)


def print_tokenization(report: explain.Tokenization, stream: TextIO, notes: TextIO | None = None) -> None:
    """Print a row for each token on ``stream``, then the summary and the check on ``notes`` (default: ``stream``)."""
    print_token_table(report, stream)
    _print_summary(report, stream if notes is None else notes)


def print_token_table(report: explain.Tokenization, stream: TextIO, *, top: int = 0) -> None:
    """Print the first ``top`` tokens (0: all), and how many more there are."""
    columns = [
        Column("#"),
        Column("id"),
        Column("token", right=False),
        Column("bytes", right=False),
        Column("start:end", plain=("start", "end")),
    ]
    rows = [
        [
            Cell(str(n)),
            Cell(str(token.id)),
            _token_cell(token),
            Cell(token.bytes.hex(" "), token.bytes.hex()),
            Cell(f"{token.start}:{token.end}", (str(token.start), str(token.end))),
        ]
        for n, token in enumerate(report.tokens[: top or None])
    ]
    print_table(columns, rows, stream)
    if len(rows) < len(report.tokens):
        print_line(f"… and {len(report.tokens) - len(rows)} more", stream, "dim")


def _print_summary(report: explain.Tokenization, stream: TextIO) -> None:
    print_line(tokenization_summary(report), stream, "dim")
    print_check(report.check, stream)


def tokenization_summary(report: explain.Tokenization) -> str:
    """Return the counts of tokens and bytes. Bytes per token excludes tokens that hold no text, such as BOS."""
    unknown = f" ({report.unknown} unknown to the tokenizer)" if report.unknown else ""
    tokens, size = counted(len(report.tokens), "token"), counted(report.text_bytes, "byte")
    return f"{report.model}: {tokens}{unknown}, {size} of text, {report.bytes_per_token:.2f} bytes per token"


def print_side_by_side(reports: Sequence[explain.Tokenization], stream: TextIO) -> None:
    """Print the n-th token of every tokenizer in row n: a pair of columns for each tokenizer."""
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


def _token_cell(token: text.Token) -> Cell:
    return Cell(token_label(token), style="dim" if token.special else "")


def print_merges(report: explain.MergesReport, stream: TextIO) -> None:
    """Print every merge, word by word."""
    words, merges = sum(word.count for word in report.words), sum(len(word.merges) for word in report.words)
    print_line(
        f"merges of {report.model}: how {counted(words, 'word')} became {counted(report.tokens, 'token')}", stream
    )
    columns = [
        Column("word", right=False),
        Column("count", optional=2),
        Column("rank"),
        Column("merged", right=False, plain=("kind", "left", "right")),
        Column("symbols", right=False),
    ]
    print_table(columns, [row for word in report.words for row in _rows(word)], stream)
    around = f"; {counted(report.around, 'token')} added to every text" if report.around else ""
    distinct = counted(len(report.words), "distinct word")
    print_line(f"{distinct}, {counted(merges, 'merge')} (the tokenizer has {report.ranks}){around}.", stream)
    legend = (
        "rank: the order in which the tokenizer learned the pairs. In each word, the pair with the lowest rank is "
        "merged first, until no learned pair is left; each symbol is then a token."
    )
    print_line(legend, stream, "dim")
    print_check(report.check, stream)


def _rows(word: explain.WordMerges) -> list[list[Cell]]:
    name, count = token_label(word), str(word.count)
    if len(name) > MAX_WORD:
        name = f"{name[:MAX_WORD]} ({len(name) - MAX_WORD} more)"
    first = {"merged": "", "whole": "already a token", "added": "added token"}[word.kind]
    symbols = text.Symbols([token_label(symbol) for symbol in word.symbols])
    rows = [
        [Cell(name, name, style="bold"), Cell(count, count), Cell(""), Cell(first, (word.kind,)), _state(symbols, 0)]
    ]
    for merge in word.merges:
        symbols.merge(merge.at, token_label(merge.result))
        pair = [token_label(part) for part in (merge.left, merge.right)]
        cells = [Cell("", name), Cell("", count), Cell(str(merge.rank)), Cell(" + ".join(pair), (word.kind, *pair))]
        rows.append([*cells, _state(symbols, merge.at)])
    rows[-1][-1] = replace(rows[-1][-1], style="green")
    return rows


def _state(symbols: text.Symbols[str], at: int) -> Cell:
    """The symbols around the one that begins at ``at``, and how many more there are on either side."""
    before, shown, after = symbols.around(at, WINDOW)
    return Cell(" ".join([*([f"({before} more)"] if before else []), *shown, *([f"({after} more)"] if after else [])]))
