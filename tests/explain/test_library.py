"""The views as a library: each is a function of ``explain`` that takes a model and a text, and finds what it shows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

import llmcli
from llmcli import explain, render
from llmcli.errors import EXIT_USAGE, LlmcliError
from llmcli.explain.report import Report
from llmcli.generation.loaded import LoadedModel

TEXT = "Once upon a time there was a fox"

VIEWS: dict[str, Callable[[LoadedModel], Report]] = {
    "attend": lambda loaded: explain.attend(loaded, TEXT),
    "attention_pattern": lambda loaded: explain.attention_pattern(loaded, TEXT, "0.0"),
    "branch": lambda loaded: explain.branch(loaded, TEXT, width=2, depth=2),
    "compare": lambda loaded: explain.compare(loaded, loaded, TEXT),
    "compare_summary": lambda loaded: explain.compare_summary(loaded, loaded, TEXT),
    "decide": lambda loaded: explain.decide(loaded, TEXT, ["and", "or"]),
    "heads": lambda loaded: explain.heads(loaded, TEXT),
    "inspect": lambda loaded: explain.inspect(loaded),
    "lens": lambda loaded: explain.lens(loaded, TEXT),
    "match_keys": lambda loaded: explain.match_keys(loaded, TEXT, "0.0"),
    "merges": lambda loaded: explain.merges(loaded, TEXT),
    "neighbours": lambda loaded: explain.neighbours(loaded, "king"),
    "patch": lambda loaded: explain.patch(loaded, "The boy", "The girl", token=" he", other=" she"),
    "position": lambda loaded: explain.position(loaded, TEXT),
    "score": lambda loaded: explain.score(loaded, TEXT),
    "steer": lambda loaded: explain.steer(loaded, ["A sad boy", "sad"], ["A happy boy", "happy"]),
    "step": lambda loaded: explain.step(loaded, TEXT, index=2),
    "tokenize": lambda loaded: explain.tokenize(loaded, TEXT),
    "tour": lambda loaded: explain.tour(loaded),
    "verify": lambda loaded: explain.verify(loaded, TEXT),
    "why": lambda loaded: explain.why(loaded, TEXT),
}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """The shipped model."""
    return llmcli.load("llama-tales-12m", offline=True, device="cpu")


def test_every_report_class_has_a_view() -> None:
    """A new report in the package's face also needs an entry here, unless it is not about a text."""
    reports = {name for name in explain.__all__ if isinstance(getattr(explain, name), type)}
    reports = {name for name in reports if issubclass(getattr(explain, name), Report)}
    reports -= {"Report", "ChatTokenization", "FitLensReport"}
    assert len(reports) == len(VIEWS)


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_needs_a_model_and_a_text_only(loaded: LoadedModel, name: str) -> None:
    report = VIEWS[name](loaded)
    assert report.check.ok
    assert type(report).__name__ in explain.__all__


@pytest.mark.parametrize("name", VIEWS)
def test_a_notebook_shows_the_table(loaded: LoadedModel, name: str) -> None:
    report = VIEWS[name](loaded)
    html = report._repr_html_()
    assert html == render.html(report)
    assert html is not None
    assert "<pre" in html
    assert "check" in html


def test_without_a_renderer_there_is_no_html(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Report, "to_html", None)
    assert explain.tokenize(loaded, TEXT)._repr_html_() is None


@pytest.mark.parametrize("view", [explain.attend, explain.lens, explain.why, explain.branch])
def test_a_text_may_be_ids(loaded: LoadedModel, view: Callable[..., Report]) -> None:
    assert view(loaded, loaded.prompt_ids(TEXT)) == view(loaded, TEXT)


def test_what_a_view_shows_is_found_by_number_or_text(loaded: LoadedModel) -> None:
    by_text = explain.lens(loaded, TEXT, position="time", token=" fox", layers="1-2")
    id = loaded.tokenizer.id_of(" fox")
    assert by_text == explain.lens(loaded, TEXT, position=by_text.position, token=id, layers=[1, 2])
    assert by_text.at.text == " time"
    last = explain.lens(loaded, TEXT, layers=-1)
    assert [row.layer for row in last.rows] == [loaded.model.config.num_hidden_layers - 1]
    by_name, by_numbers = (explain.why(loaded, TEXT, head=head) for head in ("L2.H1", (2, 1)))
    assert by_name == by_numbers
    assert by_name.heads == "head 2.1"
    assert explain.attend(loaded, TEXT, layers=[0, 3]).heads == "the heads of layers 0, 3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "0-1", "head": "0.0"}, "cannot be combined"),
        ({"token": 10**6}, "no token id"),
        ({"token": -1}, "no token id"),
        ({"position": 99}, "no position 99"),
        ({"layers": [99]}, "no layer 99"),
        ({"head": (0, 99)}, "no head 99"),
    ],
)
def test_errors_name_no_option(loaded: LoadedModel, options: dict[str, object], message: str) -> None:
    with pytest.raises(LlmcliError, match=message) as error:
        explain.why(loaded, TEXT, **options)  # type: ignore[arg-type]
    assert "--" not in str(error.value)
    assert error.value.exit_code == EXIT_USAGE


def test_a_step_is_the_one_that_a_run_with_the_same_sampler_writes(loaded: LoadedModel) -> None:
    ids = loaded.prompt_ids(TEXT)
    written = list(llmcli.steps(loaded.model, ids, sampler=explain.default_sampler(loaded, 3), max_new_tokens=4))
    report = explain.step(loaded, TEXT, index=3, sampler=explain.default_sampler(loaded, 3))
    assert report.chosen.id == written[3].token
    assert report.context_ids == (*ids, *(step.token for step in written[:3]))


def test_the_package_has_its_views_without_an_import() -> None:
    code = "import sys, llmcli; llmcli.render; sys.exit('torch' in sys.modules or llmcli.explain.lens is None)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_views_of_tokens_and_server_reports_import_no_torch() -> None:
    code = "import sys; from llmcli import explain as e; e.tokenize, e.merges, e.ScoreReport, e.GeneratedToken"
    found = subprocess.run([sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"])
    assert found.returncode == 0
