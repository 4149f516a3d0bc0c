"""Any view's report, drawn by the function that belongs to its class: on a stream, or as HTML for a notebook."""

from __future__ import annotations

from typing import Any, TextIO

from llmcli import render
from llmcli.render.picture import Picture

# The class of a report -> the function of this package that draws it. Adding a view adds a line.
DRAWN_BY = {
    "AttendReport": "print_attend",
    "AttentionPattern": "print_attention_pattern",
    "ChatTokenization": "print_chat_tokenization",
    "BranchReport": "print_branch",
    "CompareReport": "print_compare",
    "CompareSummary": "print_compare_summary",
    "DecideReport": "print_decide",
    "FitLensReport": "print_fit_lens",
    "HeadReport": "print_head",
    "HeadsReport": "print_heads",
    "InspectReport": "print_inspect",
    "LensReport": "print_lens",
    "MergesReport": "print_merges",
    "NeighboursReport": "print_neighbours",
    "PatchReport": "print_patch",
    "PositionReport": "print_position",
    "ScoreReport": "print_score",
    "ServerStep": "print_server_step",
    "SteerReport": "print_steer",
    "StepReport": "print_step",
    "Tokenization": "print_tokenization",
    "TourReport": "print_tour",
    "VerifyReport": "print_verify",
    "WhyReport": "print_why",
}


def print_report(report: Any, stream: TextIO) -> None:
    """Print any view's report as its command does without options. Raises TypeError for other objects."""
    name = DRAWN_BY.get(type(report).__name__)
    if name is None:
        raise TypeError(f"{type(report).__name__} is not a report of llmcli.explain")
    getattr(render, name)(report, stream)


def html(report: Any) -> str:
    """Return any view's report as a self-contained HTML fragment: the tables that a color terminal shows.

    Notebooks show it through the report's ``_repr_html_``. Raises TypeError for other objects.
    """
    picture = Picture()
    print_report(report, picture)
    return picture.html()
