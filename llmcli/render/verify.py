"""The proofs for the eye: a row each, what else they found, and which are being made."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from llmcli.render.table import Cell, Column, print_table
from llmcli.render.terminal import print_line
from llmcli.render.text import token_label

if TYPE_CHECKING:
    from llmcli.explain.verification.proof import Parting, Proof
    from llmcli.explain.verification.view import VerifyReport

STYLES = {"ok": "", "failed": "bold red", "skipped": "dim"}


def print_verify(report: VerifyReport, stream: TextIO) -> None:
    """The whole view."""
    rounded = f" with {report.quantized} weights" if report.quantized else ""
    part = "" if report.tokens == report.text_tokens else f" of {report.text_tokens}, the first,"
    print_line(f"verify: is {report.model} run right here, in {report.dtype}{rounded} on {report.device}?", stream)
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
    wide = "" if report.dtype == "float32" else f", much of it in {report.dtype}"
    print_line(
        f"{report.tokens} tokens{part} were read; later positions are of text that the model wrote. error: a "
        f"difference as a share of what is compared; up to the limit it is rounding{wide}.",
        stream,
        "dim",
    )
    print_line(_check(report), stream, "" if report.check.ok else "bold red")


def _row(proof: Proof) -> list[Cell]:
    style = STYLES[proof.verdict]
    return [
        Cell(proof.name, style=style),
        Cell(proof.means, style=style),
        _small(proof.error, style),
        _small(proof.limit, style),
        Cell(proof.verdict, style=style),
    ]


def _small(value: float | None, style: str) -> Cell:
    return Cell("", "") if value is None else Cell(f"{value:.0e}" if value else "0", repr(value), style)


def _note(proof: Proof) -> str:
    """What the numbers of its row do not say."""
    if proof.reason is not None:
        return proof.reason
    if proof.parting is not None:
        return _parted(proof.parting)
    if proof.error == 0 and proof.largest:  # it is not the logits that were judged
        return f"no token differs; logits do by up to {proof.largest:.0e} of the largest"
    return ""


def _parted(parting: Parting) -> str:
    favourite, other = (token_label(piece.text, piece.bytes) for piece in (parting.favourite, parting.other))
    lead = f"which led by {parting.margin:.2g}" if parting.margin else "tied with it for first"
    return f"behind position {parting.position} “{other}” instead of “{favourite}”, {lead}"


def _check(report: VerifyReport) -> str:
    verdicts = report.check
    skipped = f", {verdicts.skipped} skipped" if verdicts.skipped else ""
    if verdicts.ok:
        return f"check: ok; {verdicts.held} proofs hold{skipped}"
    failed = ", ".join(proof.name for proof in report.proofs if proof.verdict == "failed")
    return f"check: FAILED; {verdicts.failed} of {verdicts.held + verdicts.failed} proofs: {failed}{skipped}"
