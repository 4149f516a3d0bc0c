"""``verify``: a row for each proof, and what else was found."""

from __future__ import annotations

from typing import TextIO

from llmcli import explain
from llmcli.render.numbers import compact, full
from llmcli.render.table import Cell, Column, print_table
from llmcli.render.terminal import print_line
from llmcli.render.text import counted, token_label

STYLES = {"ok": "", "failed": "bold red", "skipped": "dim"}


def print_verify(report: explain.VerifyReport, stream: TextIO) -> None:
    """Print the whole view."""
    rounded = f" with {report.quantized} weights" if report.quantized else ""
    part = "" if report.tokens == report.text_tokens else f" (the first of {report.text_tokens})"
    print_line(
        f"verify: does {report.model} run correctly here, in {report.dtype}{rounded} on {report.device}?", stream
    )
    columns = [
        Column("proof", right=False),
        Column("what it shows", right=False, optional=2),
        Column("error"),
        Column("limit", optional=1),
        Column("verdict", right=False),
    ]
    print_table(columns, [_row(proof) for proof in report.proofs], stream)
    for proof in report.proofs:
        if note := _note(proof):
            print_line(f"{proof.name}: {note}", stream, STYLES[proof.verdict])
    rounding = "" if report.dtype == "float32" else f", mostly from {report.dtype}"
    print_line(
        f"Read {counted(report.tokens, 'token')}{part}; positions after that are in text that the model wrote. "
        f"error: relative difference; up to the limit it is rounding error{rounding}.",
        stream,
        "dim",
    )
    print_line(_check(report), stream, "" if report.check.ok else "bold red")


def _row(proof: explain.Proof) -> list[Cell]:
    style = STYLES[proof.verdict]
    return [
        Cell(proof.name, style=style),
        Cell(proof.means, style=style),
        _small(proof.error, style),
        _small(proof.limit, style),
        Cell(proof.verdict, style=style),
    ]


def _small(value: float | None, style: str) -> Cell:
    return Cell("", "") if value is None else Cell(f"{value:.0e}" if value else "0", full(value), style)


def _note(proof: explain.Proof) -> str:
    """Return what a proof found beyond the numbers in its row, or an empty text."""
    if proof.reason is not None:
        return proof.reason
    found = []
    if proof.error is not None and proof.largest_kl is not None:
        mean, largest = compact(proof.error, 3), compact(proof.largest_kl, 3)
        found.append(f"KL divergence: mean {mean}, largest {largest} bits")
    if proof.parting is not None:
        found.append(_divergence(proof.parting))
    if found:
        return "; ".join(found)
    if proof.error == 0 and proof.largest:  # the error is not that of the logits
        return f"no token differs; logits differ by up to {proof.largest:.0e} of the largest"
    return ""


def _divergence(divergence: explain.Divergence) -> str:
    favourite, other = (token_label(piece) for piece in (divergence.favourite, divergence.other))
    tie = f"whose logit is higher by {divergence.margin:.2g}" if divergence.margin else "whose logit is the same"
    return f"after position {divergence.position} the top token is “{other}” instead of “{favourite}”, {tie}"


def _check(report: explain.VerifyReport) -> str:
    verdicts = report.check
    skipped = f", {verdicts.skipped} skipped" if verdicts.skipped else ""
    if verdicts.ok:
        return f"check: ok; {verdicts.held} proofs hold{skipped}"
    failed = ", ".join(proof.name for proof in report.proofs if proof.verdict == "failed")
    return f"check: FAILED; {verdicts.failed} of {verdicts.held + verdicts.failed} proofs fail: {failed}{skipped}"
