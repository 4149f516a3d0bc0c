"""Merges for the eye: each word as its symbols grow together, a row a merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from llmcli.render.check import print_check
from llmcli.render.counted import counted
from llmcli.render.table import Cell, Column, print_table
from llmcli.render.terminal import label, say
from llmcli.text.bpe import replayed

if TYPE_CHECKING:
    from llmcli.explain.merges import MergesReport, WordMerges
    from llmcli.explain.piece import Piece

LONGEST = 48  # characters of a word
WINDOW = 16  # symbols shown on either side of a merge: a word without spaces may be a whole text


def print_merges(report: MergesReport, stream: TextIO) -> None:
    """The whole view."""
    words, merges = sum(word.count for word in report.words), sum(len(word.merges) for word in report.words)
    say(f"merges of {report.model}: how {counted(words, 'word')} became {counted(report.tokens, 'token')}", stream)
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
    say(f"{different}, {joined} of the tokenizer's {report.ranks}{around}.", stream)
    say("Rank: how early in training the pair was learnt. A word's pair of lowest rank is", stream, "dim")
    say("joined first, until none of its pairs has one; then each symbol is a token.", stream, "dim")
    print_check(report.check, stream)


def _rows(word: WordMerges) -> list[list[Cell]]:
    name, times = label(word.text, word.bytes), str(word.count)
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


def _now(symbols: list[Piece], at: int) -> str:
    """The symbols around the ``at``-th, and how many more there are on either side."""
    start, end = max(at - WINDOW, 0), at + WINDOW + 1
    shown = [_name(symbol) for symbol in symbols[start:end]]
    before, behind = start, len(symbols) - end
    return " ".join([*([f"({before} more)"] if before else []), *shown, *([f"({behind} more)"] if behind > 0 else [])])


def _name(symbol: Piece) -> str:
    return label(symbol.text, symbol.bytes)
