"""Views that explain what a model does: ``explain.lens(loaded, text)`` and the like.

Each view is a function named after its command. It takes a ``LoadedModel`` and a text (or token ids) and returns a
report: a frozen dataclass of plain numbers that carries its own check. ``llmcli.render`` draws reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcli import lazy

if TYPE_CHECKING:
    from llmcli.explain.attention import AttendReport as AttendReport
    from llmcli.explain.attention import AttentionPattern as AttentionPattern
    from llmcli.explain.attention import attend as attend
    from llmcli.explain.attention import attention_pattern as attention_pattern
    from llmcli.explain.attribution import WhyReport as WhyReport
    from llmcli.explain.attribution import why as why
    from llmcli.explain.logit_lens import LensReport as LensReport
    from llmcli.explain.logit_lens import lens as lens
    from llmcli.explain.report import Alternative as Alternative
    from llmcli.explain.report import Check as Check
    from llmcli.explain.report import Claim as Claim
    from llmcli.explain.report import GeneratedToken as GeneratedToken
    from llmcli.explain.report import Report as Report
    from llmcli.explain.report import ScoreReport as ScoreReport
    from llmcli.explain.report import VocabEntry as VocabEntry

__all__ = [
    "Alternative",
    "AttendReport",
    "AttentionPattern",
    "Check",
    "Claim",
    "GeneratedToken",
    "LensReport",
    "Report",
    "ScoreReport",
    "VocabEntry",
    "WhyReport",
    "attend",
    "attention_pattern",
    "lens",
    "why",
]
__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "Alternative": "report",
        "AttendReport": "attention",
        "AttentionPattern": "attention",
        "Check": "report",
        "Claim": "report",
        "GeneratedToken": "report",
        "LensReport": "logit_lens",
        "Report": "report",
        "ScoreReport": "report",
        "VocabEntry": "report",
        "WhyReport": "attribution",
        "attend": "attention",
        "attention_pattern": "attention",
        "lens": "logit_lens",
        "why": "attribution",
    },
)
