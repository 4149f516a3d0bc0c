"""The page of ``llmcli explain`` in a browser: its sampler is llmcli's, and it needs no mouse and no network."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llmcli
from llmcli import explain, render
from llmcli.generation.filters import default_order, filter_chain
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import Step
from llmcli.render import json_forms, page

PROMPT = "Once upon a time there was a"
# Type the settings into the page's fields, and read what it shows.
TRY = """(settings) => settings.map((setting) => {
  for (const [name, value] of Object.entries(setting)) {
    const field = document.getElementById(`control-${name}-value`);
    field.value = value;
    field.dispatchEvent(new Event("input"));
  }
  const rows = [...document.querySelectorAll("#candidates tbody tr[data-id]")];
  return {
    drawn: rows.filter((row) => row.classList.contains("drawn")).map((row) => Number(row.dataset.id)),
    rows: rows.map((row) =>
      [Number(row.dataset.id), ...[...row.querySelectorAll("data")].map((cell) => Number(cell.value))]),
    kept: Number(document.querySelector("#stages li:last-child").textContent.split("keeps ")[1].replaceAll(",", "")),
    outcome: document.getElementById("outcome").textContent,
  };
})"""


@pytest.fixture(scope="module")
def shipped() -> LoadedModel:
    return llmcli.load("llama-tales-12m")


def write_page(
    path: Path, loaded: LoadedModel, values: dict[str, float], order: tuple[str, ...], prompt: str = PROMPT
) -> explain.Walkthrough:
    sampler = Sampler(filter_chain(order, values), 3)
    walk = explain.walk_through(loaded, loaded.prompt_ids(prompt), sampler, order, 3)
    model = render.ModelLabel(loaded.name, "float32")
    render.save_page(path, walk, loaded.tokenizer, model, render.Caption("llmcli explain", prompt, [model]))
    return walk


@pytest.fixture(scope="module")
def written(shipped: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, explain.Walkthrough]:
    path = tmp_path_factory.mktemp("page") / "page.html"
    return path, write_page(path, shipped, {}, default_order())


@pytest.fixture
def opened(browser: Any, written: tuple[Path, explain.Walkthrough]) -> Iterator[Any]:
    """The page in a new window; afterwards there are no errors, and nothing but the page was requested."""
    yield from open_page(browser, written[0])


def open_page(browser: Any, path: Path) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(300_000)  # machines differ
    window, messages, requests = context.new_page(), list[str](), list[str]()
    window.on("console", lambda message: messages.append(message.text))
    window.on("pageerror", lambda error: messages.append(str(error)))
    window.on("request", lambda request: requests.append(request.url))
    window.goto(path.as_uri())
    yield window
    assert messages == []
    assert requests == [path.as_uri()]
    context.close()


def settings(count: int, seed: int) -> list[dict[str, float]]:
    draw = random.Random(seed)
    return [
        {
            "temperature": draw.choice([0, 0.01, draw.uniform(0.1, 1), draw.uniform(1, 3)]),
            "top-k": draw.choice([0, 0, 1, draw.randint(2, 60), draw.randint(60, 9000)]),
            "top-p": draw.choice([1, draw.uniform(0.01, 1), draw.uniform(0.9, 1)]),
            "min-p": draw.choice([0, 0, draw.uniform(0, 0.01), draw.uniform(0, 1)]),
        }
        for _ in range(count)
    ]


def expected(
    walk: explain.Walkthrough,
    loaded: LoadedModel,
    order: tuple[str, ...],
    values: dict[str, float],
    seed: int,
    index: int = 0,
) -> dict[str, Any]:
    """The record of explain-step --json for step ``index`` with other settings."""
    choice = walk.choices[index]
    context = choice.step.context_ids
    sampler = Sampler(filter_chain(order, values), seed)
    chosen = sampler.choose(choice.logits, context)
    step = Step(index, len(context), chosen.id, choice.logits, chosen, None, None)
    report = explain.step_report(
        step, sampler, loaded.tokenizer, prompt_ids=choice.step.prompt_ids, context_ids=context, top=40
    )
    return json_forms.step(report)


def test_the_sliders_do_what_the_sampler_does(
    opened: Any, written: tuple[Path, explain.Walkthrough], shipped: LoadedModel
) -> None:
    tried = settings(200, seed=1)
    reports = [expected(written[1], shipped, default_order(), values, seed) for seed, values in enumerate(tried)]
    us = [{} if report["chosen"]["u"] is None else {"u": report["chosen"]["u"]} for report in reports]
    shown = opened.evaluate(TRY, [values | u for values, u in zip(tried, us, strict=True)])
    for values, report, found in zip(tried, reports, shown, strict=True):
        assert found["drawn"] == [report["chosen"]["id"]], values
        assert found["kept"] == (report["sampler"][-1]["kept"] if report["sampler"] else 8194), values
        rows = {row["id"]: row for row in report["candidates"]}
        same = [(rows[id], numbers) for id, *numbers in found["rows"] if id in rows]
        assert len(same) >= 12
        for row, (p, p_temperature, p_final) in same:
            assert p == pytest.approx(row["p"], rel=1e-5)
            assert p_temperature == pytest.approx(row["p_temperature"], rel=1e-5, abs=1e-9), values
            assert p_final == pytest.approx(row["p_final"], rel=1e-5), values


def test_other_orders_penalties_and_large_vocabularies(
    browser: Any, shipped: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a vocabulary that is too large to be stored, the rest is grouped, which hardly changes a probability."""
    monkeypatch.setattr(page, "WHOLE", 5000)
    monkeypatch.setattr(page, "LISTED", 2000)
    order = ("presence-penalty", "min-p", "top-k", "temperature", "top-p")
    penalty = {"presence-penalty": -8.0, "temperature": 1.0}  # tokens of the prompt are among those shown
    walk = write_page(tmp_path / "page.html", shipped, penalty, order)
    for window in open_page(browser, tmp_path / "page.html"):
        tried = settings(80, seed=2)
        reports = [expected(walk, shipped, order, penalty | values, seed) for seed, values in enumerate(tried)]
        us = [{"u": report["chosen"]["u"] or 0.5} for report in reports]
        shown = window.evaluate(TRY, [values | u for values, u in zip(tried, us, strict=True)])
        unlisted = 0
        for values, report, found in zip(tried, reports, shown, strict=True):
            rows = {row["id"]: row for row in report["candidates"]}
            unlisted += not found["drawn"]
            assert found["kept"] == pytest.approx(report["sampler"][-1]["kept"], abs=3), values
            assert found["drawn"] in ([report["chosen"]["id"]], [])
            assert found["drawn"] or "does not store" in found["outcome"]
            assert found["drawn"] or rows[report["chosen"]["id"]]["rank"] >= 2000
            for id, p, _, p_final in found["rows"]:
                if id in rows:
                    assert p == pytest.approx(rows[id]["p"], rel=1e-5)
                    assert p_final == pytest.approx(rows[id]["p_final"], rel=1e-3), values
        assert 0 < unlisted < 15


def test_everything_is_reached_with_the_keyboard(opened: Any, written: tuple[Path, explain.Walkthrough]) -> None:
    press, focused = opened.keyboard.press, "document.activeElement.id"
    press("Tab")
    assert opened.evaluate("document.activeElement.className") == "skip"
    press("Tab")
    assert opened.evaluate("document.activeElement.getAttribute('role')") == "option"
    press("ArrowRight")
    assert opened.locator("#where").inner_text().startswith("Token 2 of 3")
    assert opened.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
    press("End")
    press("Home")
    reached = []
    while opened.evaluate("document.activeElement !== document.body") and len(reached) < 60:
        press("Tab")
        reached.append(opened.evaluate("document.activeElement.id || document.activeElement.dataset.head || ''"))
    for name in ("next", "control-temperature", "control-top-p-value", "control-u", "reset"):
        assert name in reached
    opened.focus("#control-temperature")
    before = opened.locator("#outcome").inner_text()
    for _ in range(70):
        press("ArrowLeft")
    assert opened.evaluate(focused) == "control-temperature"
    assert opened.locator("#outcome").inner_text() != before
    opened.focus("#reset")
    press("Enter")
    assert opened.locator("#outcome").inner_text() == before
    opened.focus("#heads button[aria-pressed=true]")
    press("Home")
    press("ArrowUp")
    at = int(opened.evaluate("document.activeElement.dataset.head"))
    assert at % 6 == 0
    assert opened.locator("#looks").inner_text().startswith(f"L{at // 6}.H0 looks at: ")
    opened.focus("#sums th button")
    press("Enter")
    assert opened.locator("#sums tr.detail:visible li").count() >= 2


def test_the_page_shows_the_views_numbers(opened: Any, written: tuple[Path, explain.Walkthrough]) -> None:
    choice = written[1].choices[1]
    opened.click("#next")
    assert choice.heads is not None
    opened.hover("#heads [data-head='9']")
    weights = choice.heads.weights[1, 3]
    best = int(weights.argmax())
    assert f"L1.H3 looks at: “{opened.locator('.token').nth(best).inner_text()}” {weights[best]:.2f}" in (
        opened.locator("#looks").inner_text()
    )
    rows = opened.locator("#layers tbody tr").all_inner_texts()
    assert len(rows) == len(choice.lens.rows)
    assert f"{choice.lens.rows[-1].kl:.2f}" in rows[-1]
    total = opened.locator("#sums tr.total").inner_text().replace("−", "-")
    assert f"{choice.why.total.difference:+.3f}" in total
    part = next(part for part in choice.why.parts if part.name == "L3.H1")
    assert float(choice.heads.contributions[3, 1].sum()) == pytest.approx(part.difference, abs=1e-6)
    assert opened.locator("#tree li").count() == 3 + 9 + 27
    assert opened.locator("#check").inner_text().startswith("check: ok;")


def test_dark_narrow_and_printed(opened: Any) -> None:
    light = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    opened.emulate_media(color_scheme="dark")
    dark = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert min(brightness(light)) > 200
    assert max(brightness(dark)) < 60
    opened.set_viewport_size({"width": 400, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 400
    assert opened.pdf(format="A4").startswith(b"%PDF")
    opened.emulate_media(media="print", color_scheme="dark")
    assert min(brightness(opened.evaluate("getComputedStyle(document.body).backgroundColor"))) == 255
    assert not opened.locator("#reset").is_visible()


def brightness(color: str) -> list[int]:
    return [int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(",")]


def test_hostile_texts_are_only_text(browser: Any, shipped: LoadedModel, tmp_path: Path) -> None:
    hostile = "</script><script>document.title='x'</script> <img src=x onerror=alert(1)> {{DATA}} "
    hostile += "\u202eabc\u202c \x1b[31m \u2028 é&lt;"
    write_page(tmp_path / "page.html", shipped, {}, default_order(), hostile)
    for window in open_page(browser, tmp_path / "page.html"):
        assert window.title() == "How a language model chose each token"
        assert window.locator("img").count() == 0
        shown = window.locator("#prompt").inner_text().replace("·", " ")
        assert "</script><script>document.title='x'</script>" in shown
        assert "\u202e" not in window.content()
        assert "abc" in shown
        assert "\x1b" not in window.content()
