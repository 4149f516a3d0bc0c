"""``llmcli explain``: the command, and the page without a browser. ``render/test_page_in_browser.py`` opens it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from llmcli.errors import EXIT_USAGE
from llmcli.render import page
from tests.commands.conftest import records

Run = Callable[..., Result]


def data_of(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_the_text_and_the_draws_are_those_of_generate(run: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    options = ("The old fox", "-m", model, "-n", 4, "--seed", 5, "--repetition-penalty", 1.3)
    result = run("explain", *options, "--save", path)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert re.search(
        r"saved .*page\.html: 4 tokens, [\d.]+ kB\n.*check: ok; replaying each draw", result.stderr, re.DOTALL
    )
    start, *tokens, _ = records(run("generate", *options, "--json"))
    data = data_of(path)
    assert [step["token"] for step in data["steps"]] == [token["id"] for token in tokens]
    assert [step["u"] for step in data["steps"]] == [token["u"] for token in tokens]
    assert data["command"].startswith("$ llmcli explain 'The old fox' -m")
    assert len(data["prompt"]) == len(start["prompt_ids"])
    assert data["fixed"] == ["repetition-penalty"]
    assert data["steps"][0]["own"]["changed"]
    assert [control["name"] for control in data["controls"]] == ["temperature", "top-k", "top-p", "min-p"]


def test_only_the_pages_own_program_runs(run: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    hostile = "</script><script>alert(1)</script> {{SCRIPT}} <!-- \u202e"
    assert run("explain", hostile, "-m", model, "-n", 1, "--save", path).exit_code == 0
    text = path.read_text(encoding="utf-8")
    assert text.count("<script") == 2
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    for tag in ("script", "style"):
        inline = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert inline is not None
        digest = base64.b64encode(hashlib.sha256(inline[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]
    assert not re.search(r"https?:|eval\(|innerHTML|\son\w+=|style=", text)
    assert "\u202e" not in text


def test_what_cannot_be_a_page_is_an_error(run: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    calls = {
        "add --save page.html": [],
        "must end in .html": ["--save", tmp_path / "page.svg"],
        "there is no folder": ["--save", tmp_path / "none" / "page.html"],
        "cannot recompute a sampler with typical-p": ["--save", path, "--typical-p", 0.5],
        "cannot recompute a sampler with dynatemp-range": ["--save", path, "--dynatemp-range", 0.5],
        "cannot recompute a sampler with presence-penalty": [
            *("--save", path, "--presence-penalty", 1, "--samplers", "temperature,presence-penalty"),
        ],
    }
    for expected, options in calls.items():
        result = run("explain", "The", "-m", model, "-n", 1, *options)
        assert result.exit_code == EXIT_USAGE
        assert expected in result.stderr
        assert result.stderr.count("\n") <= 2
    assert not path.exists()


@pytest.mark.parametrize("count", [3, 3000, 40000])
def test_packed_logits_keep_order_and_value(count: int) -> None:
    """Equal logits stay equal, unequal ones unequal, even if they differ by one unit in the last place."""
    logits = np.random.default_rng(1).normal(0, 4, count).astype(np.float32)
    logits[1] = logits[0]
    logits[2] = np.nextafter(logits[0], np.float32(9e9))
    packed = page._logits(logits)
    form = packed.form
    raw = np.frombuffer(base64.b64decode(form["codes"]), dtype=np.uint8).reshape(-1, 3).astype(np.int64)
    values = form["low"] + (raw @ [1, 256, 65536]) * form["scale"]
    ids = np.arange(count) if form["ids"] is None else packed.ids
    assert np.abs(values - logits[ids]).max() < 3e-6
    order = np.lexsort((ids, -values))
    assert np.array_equal(ids[order], np.lexsort((np.arange(count), -logits))[: len(ids)])
    assert np.array_equal(np.diff(values[order]) == 0, np.diff(logits[ids[order]]) == 0)
    if form["rest"]:
        counts, means, variances = (
            np.frombuffer(base64.b64decode(form["rest"][name]), dtype=kind)
            for name, kind in (("counts", "<u4"), ("means", "<f4"), ("variances", "<f4"))
        )
        grouped = (counts * np.exp(means) * (1 + variances / 2)).sum()
        others = np.setdiff1d(np.arange(count), ids)
        assert counts.sum() == len(others)
        assert grouped == pytest.approx(np.exp(logits[others].astype(float)).sum(), rel=1e-5)
