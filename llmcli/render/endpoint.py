"""What a server wrote, for the eye: the line that sums it up, and the one that says what cannot be known of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from llmcli.render import table
from llmcli.render.check import print_check
from llmcli.render.generation import ENDINGS, note
from llmcli.render.step import MARK, tail
from llmcli.render.table import Cell, Column, number, print_table, probability
from llmcli.render.terminal import label, one_line, say
from llmcli.render.tokens import print_probabilities

if TYPE_CHECKING:
    from llmcli.endpoint.step import ServerCandidate, ServerStep
    from llmcli.endpoint.writing import Writing
    from llmcli.explain.rivals import TokenReport


def print_server_step(report: ServerStep, stream: TextIO) -> None:
    """The candidates that the server lists, the one that was written, and how much is left to all others."""
    say(f"step {report.step}: what follows “{tail(report.context)}”? {report.model}", stream)
    columns = [
        Column(""),
        Column("rank"),
        Column("id", optional=2),
        Column("token", right=False),
        Column("logprob", optional=1),
        Column("p"),
    ]
    print_table(columns, [_candidate(row) for row in report.candidates], stream)
    say(f"all tokens that are not listed: p {probability(report.rest).shown} together", stream)
    token = label(report.chosen.text, report.chosen.bytes)
    seed = "seed not set" if report.seed is None else f"seed {report.seed}"
    say(f"chosen: {token}; surprisal {report.surprisal:.2f} bits; {seed}", stream)
    print_unknown(stream, "the final p, the draw, the entropy")
    print_check(report.check, stream)


def _candidate(row: ServerCandidate) -> list[Cell]:
    style, rated = "bold green" if row.chosen else "", row.rated
    return [
        Cell(MARK if row.chosen else "", style=style),
        table.UNKNOWN if row.rank is None else Cell(str(row.rank), style=style),
        table.UNKNOWN if rated.id is None else Cell(str(rated.id), style=style),
        Cell(label(rated.text, rated.bytes) or table.UNKNOWN.shown, style=style),
        number(rated.logprob, 3, style),
        probability(rated.prob or 0.0, style),
    ]


def print_unknown(stream: TextIO, what: str) -> None:
    """What numbers from a server are, and what they cannot tell."""
    note(
        f"p is as the server tells it, before or after its temperature. From outside nobody can know {what}, "
        "or anything of tokens that the server does not list.",
        stream,
    )


def ending(finish: str | None) -> str:
    """Why a server's text ended; an unknown reason is told in its own word."""
    return ENDINGS.get(finish or "", one_line(f"the server says “{(finish or '')[:40]}”"))


def print_answer_summary(writing: Writing, stream: TextIO, *, seed: int | None) -> None:
    """Counts, speed, why it stopped, and the seed if one was asked for."""
    about = "" if writing.counted else "about "
    decoded, seconds = writing.tokens - 1, writing.seconds - writing.first_seconds
    speed = f"{decoded / seconds:.0f} tokens/s" if decoded > 0 and seconds > 0 else "-"
    prompt = "" if writing.usage.prompt is None else f"prompt {writing.usage.prompt} tokens | "
    note(
        f"{about}{writing.tokens} tokens, {speed} | {prompt}first token after {writing.first_seconds:.2f} s | "
        f"stopped: {ending(writing.finish)} | seed {'not set' if seed is None else seed}",
        stream,
    )


def print_told(told: Sequence[TokenReport], stream: TextIO) -> None:
    """The table of a server's tokens, and what it cannot hold."""
    if all(report.logprob is None for report in told):
        note("no table: this server tells no probabilities", stream)
        return
    print_probabilities(told, stream)
    print_unknown(stream, "the final p, the draw, the entropy")
