"""``branch``: the tree of continuations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TextIO

from llmcli import explain
from llmcli.render.generation import ENDINGS
from llmcli.render.marks import print_legend, probability_band
from llmcli.render.table import Cell, Column, print_table, probability_cell
from llmcli.render.terminal import print_check, print_line
from llmcli.render.text import one_line, text_label, token_label


def print_branch(report: explain.BranchReport, stream: TextIO) -> None:
    """Print the whole view."""
    at = token_label(report.at)
    print_line(f"branch at position {report.position}, {at}: what if another token had been chosen?", stream)
    columns = [
        Column("token", right=False, plain=("token", "end")),
        Column("id", optional=4, plain="path"),
        Column("p"),
        Column("", right=False, plain="sign"),
        Column("p of path"),
        Column("p of others", optional=2),
        Column("text", right=False, optional=3),
    ]
    print_table(columns, list(_rows(report.children, "")), stream)
    others, best = probability_cell(report.others).shown, probability_cell(math.exp(report.best.logprob)).shown
    legend = f"p of others: total probability of the continuations not shown; {others} for the first token."
    print_line(legend, stream, "dim")
    print_legend(stream)
    print_line(f"most probable path (p {best}): “{one_line(report.best.text)}”", stream)
    print_check(report.check, stream)


def _rows(nodes: Sequence[explain.Node], indent: str) -> Iterator[list[Cell]]:
    """Yield rows depth first, each token after the lines of the tree; an only child is not indented."""
    for node in nodes:
        last, only = node is nodes[-1], len(nodes) == 1
        yield _row(node, indent + ("" if only else "└ " if last else "├ "))
        yield from _rows(node.children, indent + ("" if only else "  " if last else "│ "))


def _row(node: explain.Node, lines: str) -> list[Cell]:
    style, sign = probability_band(node.p)
    token, end = token_label(node.piece), "" if node.end is None else ENDINGS[node.end]
    return [
        Cell(lines + token + (f" ({end})" if end else ""), (token, end), style),
        Cell(str(node.piece.id), "/".join(map(str, node.path))),
        probability_cell(node.p),
        Cell(sign, style=style),
        probability_cell(math.exp(node.logprob)),
        Cell("", "") if node.others is None else probability_cell(node.others),
        Cell(text_label(node.text)),
    ]
