"""``llmcli train`` beyond pre-training: --init, --method, recipes of several runs, samples as it learns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from tests.commands.conftest import TEXTS

Run = Callable[..., Result]
SHORT = ("--context", 64, "--batch-size", 2, "--tokens", 64 * 2 * 6, "--validate-every", 3)
RECIPE = """\
[[stage]]
vocab_size = 300
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
context = 64
batch_size = 2
tokens = 512

[[stage]]
method = "sft"
context = 64
batch_size = 2
tokens = 512

[[stage]]
method = "dpo"
context = 64
batch_size = 1
tokens = 512
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    lines = [{"prompt": f"Sing {n}", "completion": text} for n, text in enumerate(TEXTS)]
    lines += [{"prompt": f"Sing {n}", "chosen": f"Song {n}.", "rejected": "No."} for n in range(30)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_model_is_taught_to_chat_and_to_prefer(run: Run, model: Path, corpus: Path, tmp_path: Path) -> None:
    chatty, best = tmp_path / "chatty", tmp_path / "best"
    result = run("train", corpus, "--out", chatty, "--init", model, "--method", "sft", *SHORT, "--sample", "Sing 3")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert "step 6/6" in result.stderr
    assert result.stderr.count("bits per byte") == result.stderr.count("bits per byte\n  | ") == 2
    result = run("train", corpus, "--out", best, "--init", chatty, "--method", "dpo", *SHORT)
    assert result.exit_code == 0, result.stderr
    assert "nats per pair" in result.stderr
    assert "of the pairs ranked as preferred" in result.stderr
    told = run("chat", "-m", best, "-n", 5, input="Sing 3\n")
    assert told.exit_code == 0, told.stderr
    again = run("train", corpus, "--out", best, "--resume", "--tokens", 64 * 2 * 2 * 8)
    assert again.exit_code == 0, again.stderr
    assert len((best / "metrics.jsonl").read_text().splitlines()) == 8


def test_a_recipe_runs_from_nothing_to_preferences_and_goes_on(run: Run, corpus: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "all.toml", tmp_path / "m"
    recipe.write_text(RECIPE, encoding="utf-8")
    result = run("train", corpus, "--out", out, "--recipe", recipe)
    assert result.exit_code == 0, result.stderr
    assert [line.split(":")[0] for line in result.stderr.splitlines() if str(out) in line] == ["pretrain", "sft", "dpo"]
    whole = (out / "model.safetensors").read_bytes()
    assert run("train", corpus, "--out", out, "--recipe", recipe).exit_code == 2  # a run is there
    # Without its last run and half of the one before, it goes on from there to the same end.
    for path in out.iterdir():
        if path.is_file():
            path.unlink()
    assert not (out / "1-pretrain" / "chat_template.jinja").exists()
    result = run("train", corpus, "--out", out, "--recipe", recipe, "--resume")
    assert result.exit_code == 0, result.stderr
    assert "sft:" not in result.stderr
    assert (out / "model.safetensors").read_bytes() == whole
    done = run("train", corpus, "--out", out, "--resume")
    assert (done.exit_code, "done, after step 4" in done.stderr) == (0, True)


def test_the_demo_runs_the_whole_life_of_a_model(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hundredth of its steps; that it learns in full length is for whoever looks on."""
    from llmcli.train import demo

    short = [replace(recipe, tokens=recipe.tokens // 100) for recipe in demo.recipes()]
    monkeypatch.setattr(demo, "recipes", lambda: short)
    monkeypatch.setattr(demo, "STORIES", 100)
    monkeypatch.chdir(tmp_path)
    result = run("train", "--demo")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("\n  | ") >= 6
    told = run("chat", "-m", "llmcli-demo", "-n", 5, input="Tell a story about a fox and a kite.\n")
    assert told.exit_code == 0, told.stderr
    assert run("train", "--demo").exit_code == 2  # a run is there
    assert run("train", "--demo", "--tokens", 5).exit_code == 2


def test_the_demo_s_stories_are_what_was_asked_for() -> None:
    """Each names the hero and the thing of its request, and of a pair the end alone differs."""
    from llmcli.train import demo

    lines = list(demo.lines())
    assert len(lines) == demo.STORIES + demo.PAIRS
    assert len({line.get("completion") for line in lines}) > 0.95 * demo.STORIES
    for line in lines:
        told = line.get("completion") or line["chosen"]
        for word in re.findall(r"\ba (\w+)", line["prompt"].replace("a story", "")):
            assert f" {word}" in told, line
        assert " a owl" not in told
        assert "{" not in told
        if "chosen" in line:
            ends = [line[name].split(". ") for name in ("chosen", "rejected")]
            assert ends[0] != ends[1]
            assert ends[0][:2] == ends[1][:2]


def test_errors(run: Run, model: Path, corpus: Path, tmp_path: Path) -> None:
    out, recipe = tmp_path / "m", tmp_path / "all.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    for args, says in (
        (("--method", "sft"), "--init"),
        (("--init", model, "--hidden-size", 8), "hidden_size"),
        (("--init", model, "--recipe", recipe), "vocab_size"),
        (("--recipe", recipe, "--tokens", 5), "not --tokens"),
        (("--recipe", tmp_path / "none.toml"), "no such file"),
        (("--init", tmp_path / "none"), "none"),
        (("--plain", 3), "plain"),
        (("--resume", "--init", model), "not --init"),
    ):
        result = run("train", corpus, "--out", out, *args)
        assert result.exit_code in (1, 2), result.stderr
        assert says in result.stderr
        assert result.stderr.count("\n") == 1
        assert not out.exists()
    result = run("train", corpus, "--out", model, "--init", model, *SHORT)
    assert result.exit_code == 2
