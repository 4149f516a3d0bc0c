"""The line that ends every view: whether it proved itself, and how closely."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from llmcli.render.terminal import say

if TYPE_CHECKING:
    from llmcli.explain.check import Check, Claim


def print_check(check: Check, stream: TextIO) -> None:
    """One line: each claim, and how far it is from holding."""
    claims = "; ".join(_told(claim) for claim in check.claims)
    say(f"check: {'ok' if check.ok else 'FAILED'}; {claims}", stream, style="" if check.ok else "bold red")


def _told(claim: Claim) -> str:
    within = "exactly" if claim.error == 0 else f"within {claim.error:.0e}"
    return f"{claim.what} {within}" + ("" if claim.holds else f", where at most {claim.limit:.0e} is right")
