"""Every view's report finds the function that draws it, and becomes HTML with its numbers."""

from __future__ import annotations

import ast
import html
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmcli
from llmcli import explain, render
from llmcli.generation.loaded import LoadedModel
from llmcli.render.reports import DRAWN_BY

PACKAGE = Path(llmcli.__file__).parent
TEXT = "The cat that I saw"


def reports() -> set[str]:
    """The classes of explain/ and endpoint/ that carry a check."""
    found = set()
    for path in [*PACKAGE.glob("explain/**/*.py"), *PACKAGE.glob("endpoint/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                fields = {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)}
                if "check" in fields:
                    found.add(node.name)
    return found


def test_every_report_with_a_check_is_drawn() -> None:
    assert set(DRAWN_BY) == reports()


@pytest.mark.parametrize("name", sorted(set(DRAWN_BY.values())))
def test_every_function_is_one_of_the_package(name: str) -> None:
    assert callable(getattr(render, name))


def test_other_objects_are_rejected() -> None:
    with pytest.raises(TypeError, match="str is not a report"):
        render.print_report("lens", io.StringIO())
    with pytest.raises(TypeError, match="int is not a report"):
        render.html(3)


# --- HTML ---


@pytest.fixture(scope="module")
def shipped() -> LoadedModel:
    return llmcli.load("llama-tales-12m")


# A report of each view, and the numbers of it that its tables must show.
VIEWS: dict[str, tuple[Callable[[LoadedModel], Any], Callable[[Any], list[str]]]] = {
    "attend": (
        lambda model: explain.attend(model, TEXT),
        lambda report: [f"{source.mean:.4f}" for source in report.sources],
    ),
    "attention_pattern": (
        lambda model: explain.attention_pattern(model, TEXT, head="3.2"),
        lambda report: [f"{weight * 100:.0f}" for row in report.rows for weight in row.weights if weight > 0.01],
    ),
    "branch": (
        lambda model: explain.branch(model, TEXT, width=2, depth=1),
        lambda report: [f"{child.p:.4f}" for child in report.children],
    ),
    "compare": (
        lambda model: explain.compare(model, model, TEXT),
        lambda report: [f"{report.bits_per_byte[0]:.4f}", "+0.00"],
    ),
    "compare_summary": (
        lambda model: explain.compare_summary(model, model, TEXT),
        lambda report: [f"{report.bits_per_byte[0]:.4f}", "100.00%"],
    ),
    "decide": (
        lambda model: explain.decide(model, TEXT, ["who", "and", "named Max"]),
        lambda report: [f"{row.mean_logprob:.3f}" for row in report.choices] + [f"{report.outside:.4f}"],
    ),
    "head": (
        lambda model: explain.match_keys(model, TEXT, "3.2"),
        lambda report: [f"{key.score:.2f}" for key in report.keys],
    ),
    "inspect": (explain.inspect, lambda report: [f"{report.parameters:,}"]),
    "lens": (
        lambda model: explain.lens(model, TEXT),
        lambda report: [f"{row.kl:.2f}" for row in report.rows],
    ),
    "merges": (
        lambda model: explain.merges(model, TEXT),
        lambda report: [str(merge.rank) for word in report.words for merge in word.merges],
    ),
    "neighbours": (
        lambda model: explain.neighbours(model, "fox"),
        lambda report: [f"{row.centred:.4f}" for row in report.neighbours],
    ),
    "position": (
        lambda model: explain.position(model, TEXT),
        lambda report: [f"{turn.period:.1f}" for turn in report.turns],
    ),
    "score": (
        lambda model: explain.score(model, TEXT),
        lambda report: [f"{token.surprisal:.2f}" for token in report.tokens],
    ),
    "step": (
        lambda model: explain.step(model, TEXT),
        lambda report: [f"{row.logit:.3f}" for row in report.candidates],
    ),
    "tokenize": (
        lambda model: explain.tokenize(model, TEXT),
        lambda report: [str(token.id) for token in report.tokens],
    ),
    "tour": (
        lambda model: explain.tour(model, TEXT),
        lambda report: [f"{report.lens.rows[-1].kl:.2f}", f"{report.why.total.difference:+.3f}"],
    ),
    "verify": (
        lambda model: explain.verify(model, TEXT),
        lambda report: [proof.name for proof in report.proofs],
    ),
    "why": (
        lambda model: explain.why(model, TEXT),
        lambda report: [f"{report.total.difference:+.3f}"],
    ),
}


@pytest.mark.parametrize("view", VIEWS)
def test_html_shows_the_numbers_of_a_report(view: str, shipped: LoadedModel) -> None:
    make, numbers = VIEWS[view]
    report = make(shipped)
    fragment = render.html(report)
    assert fragment.startswith("<pre")
    assert fragment.endswith("</pre>")
    text = html.unescape(re.sub("<[^>]*>", "", fragment))
    expected = numbers(report)
    assert expected
    for number in expected:
        assert number in text
    assert "check: ok" in text or view == "step"


def test_html_is_escaped(shipped: LoadedModel) -> None:
    hostile = "<script>alert(1)</script> [bold]&amp;"
    fragment = render.html(explain.score(shipped, hostile))
    assert "<script" not in fragment
    assert hostile in html.unescape(re.sub("<[^>]*>", "", fragment))
