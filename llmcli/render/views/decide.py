"""``decide`` and ``batch --choices``: the probability of each choice, and how many right answers a model chose."""

from __future__ import annotations

import math
from typing import TextIO

from llmcli import explain
from llmcli.generation import jobs
from llmcli.render.marks import bar_cell, print_legend, probability_band
from llmcli.render.numbers import fixed
from llmcli.render.table import Cell, Column, number_cell, print_table, probability_cell
from llmcli.render.terminal import print_check, print_line
from llmcli.render.text import counted, text_label, token_label

OTHERS = "anything else"


def print_decide(report: explain.DecideReport, stream: TextIO, *, top: int = 20) -> None:
    """Print the whole view: the ``top`` most probable choices (0: all), everything else, and what the numbers mean."""
    print_line(f"decide: which of {counted(len(report.choices), 'choice')} does {report.model} prefer?", stream)
    ranked = sorted(report.choices, key=lambda row: -row.logprob)
    shown = ranked[: top or None]
    columns = [
        Column("choice", right=False),
        Column("tokens", optional=3),
        Column("p", plain=("p", "logprob")),
        Column("", right=False, plain="sign"),
        Column("share"),
        Column("", right=False, optional=4, plain="bar"),
        Column("ln p per token", optional=1),
        Column("share per token", optional=1),
        Column("p of each token", right=False, optional=2),
    ]
    others = probability_cell(report.outside)
    style, sign = probability_band(report.outside)
    rest = [Cell(f"({OTHERS})", OTHERS, "dim"), Cell(""), others, Cell(sign, style=style), *[Cell("")] * 5]
    print_table(columns, [*map(_row, shown), rest], stream)
    if len(shown) < len(ranked):
        print_line(f"the {len(shown)} most probable of {len(ranked)} choices; --top 0 shows all", stream, "dim")
    ends = " and ends there" if report.end else ""
    meaning = f"p: the probability that the text continues with the choice{ends}; share: against the other choices."
    print_line(meaning, stream, "dim")
    print_legend(stream)
    _print_notes(report, stream)
    _print_verdict(report, stream)
    print_check(report.check, stream)


def _row(row: explain.ChoiceRow) -> list[Cell]:
    style, sign = probability_band(row.p)
    each = " ".join(probability_cell(math.exp(logprob)).shown for logprob in row.logprobs)
    p = probability_cell(row.p, style, logprob=row.logprob)
    return [
        Cell(text_label(row.text), style=style),
        Cell(str(len(row.tokens))),
        Cell(p.shown, (str(p.plain), str(number_cell(row.logprob).plain)), style),
        Cell(sign, style=style),
        probability_cell(row.share),
        bar_cell(row.share, 1.0),
        number_cell(row.mean_logprob, 3),
        probability_cell(row.mean_share),
        Cell(each),
    ]


def _print_notes(report: explain.DecideReport, stream: TextIO) -> None:
    """Print what is special about these choices, if anything is."""
    if report.moved:
        moved = " ".join(map(token_label, report.moved))
        which = f"token {moved} merges" if len(report.moved) == 1 else f"tokens {moved} merge"
        print_line(f"The prompt's last {which} with a choice, and so counts as part of the choices.", stream)
    nested = [row for row in report.choices if row.begins]
    if nested:
        longer = text_label(report.choices[nested[0].begins[0]].text)
        print_line(
            f"“{text_label(nested[0].text)}” begins “{longer}”: its p includes the other's. "
            "--end counts a choice only if the text ends there.",
            stream,
        )


def _print_verdict(report: explain.DecideReport, stream: TextIO) -> None:
    """Print the finding: the most probable choice, whether it also is per token, and what else the model could say."""
    best, per_token = report.choices[report.best], report.choices[report.best_per_token]
    also = ", also per token" if best is per_token else f"; per token “{text_label(per_token.text)}”"
    print_line(
        f"most probable: “{text_label(best.text)}”, {fixed(100 * best.share, 1)}% of the choices{also}. "
        f"All choices together: {probability_cell(max(1 - report.outside, 0.0)).shown}; the most probable token that "
        f"begins none of them is {token_label(report.other)} (p {probability_cell(report.p_other).shown}).",
        stream,
    )


def print_accuracy(by_total: jobs.Accuracy, per_token: jobs.Accuracy, stream: TextIO) -> None:
    """Print how many questions were answered right, by log probability and per token, beside guessing."""
    columns = [
        Column("chosen by", right=False),
        Column("right"),
        Column("of", optional=2),
        Column("accuracy"),
        Column("standard error"),
        Column("95% interval", plain=("low", "high"), optional=1),
    ]
    rows = [
        _accuracy_row("log probability", by_total),
        _accuracy_row("log probability per token", per_token),
        [Cell("guessing"), Cell(""), Cell(""), number_cell(by_total.chance, 3), Cell(""), Cell("")],
    ]
    print_table(columns, rows, stream)


def _accuracy_row(name: str, found: jobs.Accuracy) -> list[Cell]:
    low, high = found.interval
    return [
        Cell(name),
        Cell(str(found.correct)),
        Cell(str(found.questions)),
        number_cell(found.share, 3),
        number_cell(found.standard_error, 3),
        Cell(f"{low:.3f} to {high:.3f}", (str(number_cell(low).plain), str(number_cell(high).plain))),
    ]
