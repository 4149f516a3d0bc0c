"""The tree of continuations for the eye."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from llmcli.render.check import print_check
from llmcli.render.generation import ENDINGS
from llmcli.render.table import Cell, Column, print_table, probability
from llmcli.render.terminal import band, label, say

if TYPE_CHECKING:
    from llmcli.explain.branch import BranchReport, Node


def print_branch(report: BranchReport, stream: TextIO) -> None:
    """The whole view."""
    at = label(report.at.text, report.at.bytes)
    say(f"branch at {report.position}, {at}: what if another token had been chosen?", stream)
    columns = [
        Column("token", right=False, plain="path"),
        Column("id", optional=4),
        Column("p"),
        Column("", right=False),
        Column("p of the path"),
        Column("other tokens", optional=2),
        Column("text so far", right=False, optional=3),
    ]
    print_table(columns, list(_rows(report.children, "")), stream)
    say(f"{report.others:.4f} of the probability is with other first tokens", stream, "dim")
    say(f"most probable path ({math.exp(report.best.logprob):.4f}): “{label(report.best.text, b'')}”", stream)
    print_check(report.check, stream)


def _rows(nodes: Sequence[Node], indent: str) -> Iterator[list[Cell]]:
    """Depth first, each node behind the lines that lead to it."""
    for node in nodes:
        last = node is nodes[-1]
        yield _row(node, indent + ("└ " if last else "├ "))
        yield from _rows(node.children, indent + ("  " if last else "│ "))


def _row(node: Node, lines: str) -> list[Cell]:
    style, sign = band(node.p)
    end = "" if node.end is None else f" ({ENDINGS[node.end]})"
    return [
        Cell(lines + label(node.piece.text, node.piece.bytes) + end, "/".join(map(str, node.path)), style),
        Cell(str(node.piece.id)),
        probability(node.p),
        Cell(sign, style=style),
        probability(math.exp(node.logprob)),
        Cell("", "") if node.others is None else probability(node.others),
        Cell(label(node.text, b"")),
    ]
