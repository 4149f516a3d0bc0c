"""``compare``: a text colored by how a second model rates its tokens, the largest changes, and the totals."""

from __future__ import annotations

from typing import TextIO

from rich.text import Text

from llmcli import explain
from llmcli.files.sizes import readable
from llmcli.render.marks import NEGATIVE, POSITIVE, signed_bar_cell, signed_bar_heading
from llmcli.render.numbers import compact, fixed, full
from llmcli.render.table import Cell, Column, number_cell, print_table
from llmcli.render.terminal import console, drawn, print_check, print_line, styled
from llmcli.render.text import escape_controls, one_line, token_label
from llmcli.render.views.score import print_windows

NOTABLE = 0.5  # nats: smaller changes are not colored


def print_compare(report: explain.CompareReport, stream: TextIO, *, top: int = 20) -> None:
    """Print the whole view: the text, the ``top`` largest changes in text order (0: all), and the totals."""
    first, second = report.models
    print_line(f"compare: what does {second} expect that {first} does not?", stream)
    if drawn(stream):
        _print_text(report, stream)
    shown = sorted(report.tokens, key=lambda token: -abs(token.delta))[: top or None]
    longest = max(abs(token.delta) for token in shown)
    columns = [
        Column("#", optional=2),
        Column("token", right=False),
        Column("logprob 1", optional=3),
        Column("logprob 2", optional=4),
        Column("change, nats"),
        Column(signed_bar_heading("less", "more"), right=False, optional=5, plain="sign"),
        Column("KL, bits"),
        Column("top token", right=False, optional=1, plain=("top token 1", "top token 2")),
    ]
    print_table(columns, [_row(token, longest) for token in sorted(shown, key=lambda token: token.position)], stream)
    if len(shown) < len(report.tokens):
        print_line(f"the {len(shown)} largest changes of {len(report.tokens)} tokens; --top 0 shows all", stream, "dim")
    before, after = report.bits_per_byte
    count = len(report.tokens)
    differing = f"{round(report.other_favourite * count)} of {count} positions"
    print_line(
        f"bits per byte: first model {fixed(before, 4)}, second {fixed(after, 4)} ({fixed(after - before, 4, '+')}); "
        f"KL {fixed(report.mean_kl, 4)} bits per token; "
        f"different top token at {differing}. The first token is not compared: it has no context.",
        stream,
    )
    print_windows(report.windows, stream)
    print_check(report.check, stream)


def print_compare_summary(report: explain.CompareSummary, stream: TextIO) -> None:
    """Print KL divergence both ways, then both models' figures, then where the divergence is largest."""
    first, second = report.models
    print_line(f"compare: how far is {second} from {first}, over {report.positions} positions?", stream)
    columns = [
        Column("KL, bits per token", right=False),
        *(Column(name) for name in ("mean", "median", "99th percentile", "largest")),
    ]
    rows = [("D(1‖2)", report.kl), ("D(2‖1)", report.reverse_kl)]
    print_table(columns, [_divergence_row(name, kl) for name, kl in rows], stream)
    columns = [
        Column("#"),
        Column("model", right=False),
        Column("perplexity"),
        Column("bits per byte"),
        Column("weights on disk", plain="bytes on disk"),
    ]
    models = zip(report.models, report.perplexities, report.bits_per_byte, report.disk_bytes, strict=True)
    print_table(columns, [_model_row(number, *model) for number, model in enumerate(models, start=1)], stream)
    largest = report.largest
    before, after = (token_label(piece) for piece in largest.favourites)
    tops = f"“{before}” for model 1 and “{after}” for model 2" if before != after else f"“{before}” for both models"
    print_line(
        f"Same top token at {100 * report.same_favourite:.2f}% of the positions; "
        f"perplexity 2 / perplexity 1 = {fixed(report.perplexity_ratio, 5)}. KL is largest at position "
        f"{largest.position}, {token_label(largest.piece)} after “{one_line(largest.context)}”, where the top token is "
        f"{tops}.",
        stream,
    )
    print_windows(report.windows, stream)
    print_check(report.check, stream)


def _divergence_row(name: str, kl: explain.Divergences) -> list[Cell]:
    return [Cell(name), *(number_cell(value, 5) for value in (kl.mean, kl.median, kl.p99, kl.largest))]


def _model_row(number: int, name: str, perplexity: float, bits_per_byte: float, disk_bytes: int) -> list[Cell]:
    return [
        Cell(str(number)),
        Cell(name),
        Cell(compact(perplexity, 6), full(perplexity)),
        number_cell(bits_per_byte, 4),
        Cell(readable(disk_bytes), str(disk_bytes)),
    ]


def _print_text(report: explain.CompareReport, stream: TextIO) -> None:
    text = Text()
    for token in report.tokens:
        text.append(
            escape_controls(token.chunk),
            "" if abs(token.delta) < NOTABLE else POSITIVE if token.delta > 0 else NEGATIVE,
        )
    legend = Text.assemble(
        ("more probable", POSITIVE), "  ", ("less probable", NEGATIVE), f"  by {NOTABLE} nats or more"
    )
    console(stream).print(text)
    if styled(stream):
        console(stream).print(legend)


def _row(token: explain.ComparedToken, longest: float) -> list[Cell]:
    before, after = (token_label(piece) for piece in token.favourites)
    return [
        Cell(str(token.position)),
        Cell(token_label(token.piece)),
        number_cell(token.logprobs[0], 2),
        number_cell(token.logprobs[1], 2),
        Cell(fixed(token.delta, 2, "+"), full(token.delta)),
        signed_bar_cell(token.delta, longest),
        number_cell(token.kl, 3),
        Cell(before if before == after else f"{before} → {after}", (before, after)),
    ]
