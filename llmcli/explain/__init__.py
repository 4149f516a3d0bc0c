"""Views that explain what a model does: each is a report of plain numbers that carries its own check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcli import lazy

if TYPE_CHECKING:
    from llmcli.explain.report import Check as Check
    from llmcli.explain.report import Claim as Claim

__all__ = ["Check", "Claim"]
__getattr__, __dir__ = lazy.exports(__name__, {"Check": "check", "Claim": "check"})
