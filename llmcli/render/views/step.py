"""``explain-step``: a step's candidates, what each filter did, the draw, and other temperatures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from llmcli import endpoint, explain
from llmcli.render.generation import filter_label, print_server_limits
from llmcli.render.marks import filled
from llmcli.render.table import UNKNOWN, Cell, Column, number_cell, print_table, probability_cell
from llmcli.render.terminal import console, drawn, error_label, print_check, print_line
from llmcli.render.text import counted, one_line, token_label

CHOSEN = "→"
BAR = 3  # cells of a bar beside a probability


def print_step(report: explain.StepReport, stream: TextIO) -> None:
    """Print the whole view."""
    print_candidates(report, stream)
    if report.columns:
        print_temperatures(report, stream)
    print_step_check(report, stream)


def print_step_check(report: explain.StepReport, stream: TextIO) -> None:
    """Print the line that ends the view."""
    check = report.check
    print_line(
        f"check: {'ok' if check.ok else 'FAILED'}; replaying the draw from the table gives id {check.replayed_id}; "
        f"the final p sum to 1 ({error_label(check.sum_error)})",
        stream,
        style="" if check.ok else "bold red",
    )


def print_candidates(report: explain.StepReport, stream: TextIO) -> None:
    """Print each candidate's way through the sampler, and the draw."""
    _print_heading(report, stream)
    columns = [
        Column("", plain="chosen"),
        Column("rank", optional=1),
        Column("id", optional=6),
        Column("token", right=False),
        Column("logit", optional=5),
        *([Column("adjusted", optional=4)] if _adjusts(report) else []),
        Column("p"),
        Column(f"p(T={_temperature(report):.4g})", optional=2),
        Column("cut by", right=False),
        Column("final p"),
        Column("drawn if u in", right=False, optional=3, plain=("u from", "u to")),
    ]
    rows = [_row(row, row.id == report.chosen.id, _adjusts(report)) for row in report.candidates]
    print_table(columns, rows, stream)
    _print_below(report, stream)


def _print_heading(report: explain.StepReport, stream: TextIO) -> None:
    context = counted(len(report.context_ids), "token")
    print_line(
        f"step {report.step}: what follows “{tail(report.context)}”? context {context}, "
        f"{report.vocabulary} candidates, entropy {report.entropy:.2f} bits",
        stream,
    )


def tail(text: str, length: int = 32) -> str:
    """Return the end of a text, on one line."""
    return ("…" if len(text) > length else "") + one_line(text[-length:])


def _temperature(report: explain.StepReport) -> float:
    stages = [stage for stage in report.sampler if stage.name == "temperature" and stage.value is not None]
    return next((stage.state.get("temperature", stage.value or 0.0) for stage in stages), 1.0)


def _adjusts(report: explain.StepReport) -> bool:
    """Return whether a filter raised or lowered individual logits."""
    return any(row.adjusted != row.logit for row in report.candidates)


def _row(row: explain.Candidate, chosen: bool, adjusts: bool) -> list[Cell]:
    style = "bold green" if chosen else "dim" if row.cut else ""
    interval = Cell("", "") if row.u_low is None else Cell(_interval(row), (repr(row.u_low), repr(row.u_high)), style)
    return [
        Cell(CHOSEN if chosen else "", style=style),
        Cell(str(row.rank), style=style),
        Cell(str(row.id), style=style),
        Cell(token_label(row), style=style),
        number_cell(row.logit, 3, style),
        *([number_cell(row.adjusted, 3, style)] if adjusts else []),
        probability_cell(row.p, style),
        probability_cell(row.p_temperature, style),
        Cell(row.cut or "", style=style),
        probability_cell(row.p_final, style),
        interval,
    ]


def _interval(row: explain.Candidate) -> str:
    return f"{row.u_low:.4f}–{row.u_high:.4f}"


def _print_below(report: explain.StepReport, stream: TextIO) -> None:
    names = [stage_label(stage) + ":" for stage in report.sampler]
    for name, stage in zip(names, report.sampler, strict=True):
        print_line(f"{name:<{max(map(len, names))}} {_effect(stage)}", stream)
    print_chosen(report, stream)


def print_chosen(report: explain.StepReport, stream: TextIO) -> None:
    """Print which token was chosen, and how."""
    chosen = report.chosen
    token = token_label(chosen)
    if chosen.u is None:
        how = "the most probable token (temperature 0: no draw)"
    else:
        how = f"drawn with u = {chosen.u:.6f} (seed {report.seed}), final p {chosen.p_final:.4f}"
    print_line(f"chosen: {token} (id {chosen.id}), {how}; surprisal {chosen.surprisal:.2f} bits", stream)


def _effect(stage: explain.StageReport) -> str:
    """Return what a filter did: how many tokens it kept, which share of the probability it cut or moved."""
    computed = "".join(f"{_computed(stage, name, value)}; " for name, value in stage.state.items())
    cut = f", cuts {probability_cell(stage.removed_mass).shown}" if stage.removed_mass else ""
    if 0 < stage.changed < stage.kept:
        moved = probability_cell(stage.moved).shown
        return f"{computed}changes {counted(stage.changed, 'logit')}, moves {moved} of the probability{cut}"
    return f"{computed}keeps {counted(stage.kept, 'token')}" + (f"{cut} of the probability" if cut else "")


def stage_label(stage: explain.StageReport) -> str:
    """Return a filter's name with its settings."""
    return filter_label(stage.name, stage.value, stage.settings)


def _computed(stage: explain.StageReport, name: str, value: float) -> str:
    """Return one of the numbers that a filter computed, with what it means."""
    if name == "u":  # of XTC
        return f"own draw {value:.4f}, {'' if value < (stage.value or 0) else 'not '}below {stage.value:g}"
    return f"{value:.4g} in this step" if name == "temperature" else f"{name} {value:.4g}"


def print_temperatures(report: explain.StepReport, stream: TextIO) -> None:
    """Print the candidates' p at each temperature: if other filters act, by temperature alone, then after all."""
    others = [
        filter_label(stage.name, stage.value, stage.settings) for stage in report.sampler if stage.name != "temperature"
    ]
    names = ", ".join(others)
    if all(column.alone == column.probs for column in report.columns):
        print_line("\np by temperature; no other filter changes it:", stream)
        print_by_temperature(report, stream, final=True)
        _print_choices_legend(report, stream)
        return
    print_line("\np by temperature alone:", stream)
    print_by_temperature(report, stream, final=False)
    print_line(f"\nfinal p, after all filters (temperature, {names}):", stream)
    print_by_temperature(report, stream, final=True)
    at_1 = "At T=1, temperature alone leaves p as it is. " if any(c.temperature == 1 for c in report.columns) else ""
    why = (
        f"{at_1}The final p differs because of {names}: tokens are removed or their logits changed, and the "
        "remaining p are scaled to sum to 1."
    )
    print_line(why, stream, "dim")
    _print_choices_legend(report, stream)


def _print_choices_legend(report: explain.StepReport, stream: TextIO) -> None:
    used = "*: the temperature of this step. " if any(column.used for column in report.columns) else ""
    legend = "effective choices: as open as a choice among this many equally likely tokens."
    print_line(used + legend, stream, "dim")


def print_by_temperature(report: explain.StepReport, stream: TextIO, *, final: bool, top: int | None = None) -> None:
    """Print the first ``top`` candidates with a column per temperature; a narrow terminal gets several tables."""
    count = len(report.columns)
    together = max(1, (console(stream).width - 19) // (BAR + 9)) if drawn(stream) else count
    for first in range(0, count, together):
        _print_some_temperatures(report, report.columns[first : first + together], stream, final=final, top=top)


def _print_some_temperatures(
    report: explain.StepReport,
    shown: Sequence[explain.TemperatureColumn],
    stream: TextIO,
    *,
    final: bool,
    top: int | None,
) -> None:
    """Print the candidates, then the effective number of choices and, for the final p, the token drawn."""
    columns = [
        Column("token", right=False),
        *(Column(f"T={column.temperature:g}{'*' if column.used else ''}") for column in shown),
    ]
    rows = [
        [Cell(token_label(row)), *(_bar_cell((column.probs if final else column.alone)[row.id]) for column in shown)]
        for row in report.candidates[:top]
    ]
    choices = [column.choices if final else column.choices_alone for column in shown]
    rows.append([Cell("effective choices"), *(number_cell(value, 1, "italic") for value in choices)])
    if final:
        rows.append([Cell("entropy, bits"), *(number_cell(column.entropy, 2, "italic") for column in shown)])
        drawn = [Cell(token_label(column), style="bold green") for column in shown]
        rows.append([Cell("most probable" if report.chosen.u is None else "drawn (same u)"), *drawn])
    print_table(columns, rows, stream)


def _bar_cell(p: float) -> Cell:
    """Return a probability with a bar, which only a terminal shows."""
    cell = probability_cell(p)
    return Cell(f"{cell.shown} {filled(p, BAR)}", cell.plain)


def print_server_step(report: endpoint.ServerStep, stream: TextIO) -> None:
    """Print the candidates that a server lists, the one it chose, and the probability of all others."""
    print_line(f"step {report.step}: what follows “{tail(report.context)}”? {report.model}", stream)
    columns = [
        Column("", plain="chosen"),
        Column("rank"),
        Column("id", optional=2),
        Column("token", right=False),
        Column("logprob", optional=1),
        Column("p"),
    ]
    print_table(columns, [_candidate(row) for row in report.candidates], stream)
    print_line(f"all tokens not listed: p {probability_cell(report.rest).shown} in total", stream)
    token = token_label(report.chosen)
    seed = "seed not set" if report.seed is None else f"seed {report.seed}"
    print_line(f"chosen: {token}; surprisal {report.surprisal:.2f} bits; {seed}", stream)
    print_server_limits(stream, "the final p, the draw, the entropy")
    print_check(report.check, stream)


def _candidate(row: endpoint.ServerCandidate) -> list[Cell]:
    style, token = "bold green" if row.chosen else "", row.token
    return [
        Cell(CHOSEN if row.chosen else "", style=style),
        UNKNOWN if row.rank is None else Cell(str(row.rank), style=style),
        UNKNOWN if token.id is None else Cell(str(token.id), style=style),
        Cell(token_label(token) or UNKNOWN.shown, style=style),
        number_cell(token.logprob, 3, style),
        probability_cell(token.prob or 0.0, style),
    ]
