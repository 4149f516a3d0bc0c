"""``llmcli train`` beyond pre-training: --init, --method, recipes of several stages, and --sample."""

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


def test_sft_and_dpo_continue_a_model(run: Run, model: Path, corpus: Path, tmp_path: Path) -> None:
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
    chat = run("chat", "-m", best, "-n", 5, input="Sing 3\n")
    assert chat.exit_code == 0, chat.stderr
    again = run("train", corpus, "--out", best, "--resume", "--tokens", 64 * 2 * 2 * 8)
    assert again.exit_code == 0, again.stderr
    assert len((best / "metrics.jsonl").read_text().splitlines()) == 8


def test_a_recipe_of_three_stages_can_be_resumed(run: Run, corpus: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "all.toml", tmp_path / "m"
    recipe.write_text(RECIPE, encoding="utf-8")
    result = run("train", corpus, "--out", out, "--recipe", recipe)
    assert result.exit_code == 0, result.stderr
    titles = [line.split(":")[0] for line in result.stderr.splitlines() if str(out) in line]
    assert titles == ["stage 1 of 3, pretrain", "stage 2 of 3, sft", "stage 3 of 3, dpo"]
    whole = (out / "model.safetensors").read_bytes()
    assert run("train", corpus, "--out", out, "--recipe", recipe).exit_code == 2  # the folder already contains a run
    # Without the files of the last stage, --resume runs only that stage and gives the same weights.
    for path in out.iterdir():
        if path.is_file():
            path.unlink()
    assert not (out / "1-pretrain" / "chat_template.jinja").exists()
    result = run("train", corpus, "--out", out, "--recipe", recipe, "--resume")
    assert result.exit_code == 0, result.stderr
    assert "sft:" not in result.stderr
    assert (out / "model.safetensors").read_bytes() == whole
    done = run("train", corpus, "--out", out, "--resume")
    assert (done.exit_code, "is complete at step 4" in done.stderr) == (0, True)


def test_the_demo_runs_all_stages(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of the steps is enough to run each stage; whether the full demo learns is not tested."""
    from llmcli.train import demo

    short = [replace(recipe, tokens=recipe.tokens // 100) for recipe in demo.recipes()]
    monkeypatch.setattr(demo, "recipes", lambda: short)
    monkeypatch.setattr(demo, "STORIES", 100)
    monkeypatch.chdir(tmp_path)
    result = run("train", "--demo")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("\n  | ") >= 6
    chat = run("chat", "-m", "llmcli-demo", "-n", 5, input="Tell a story about a fox and a kite.\n")
    assert chat.exit_code == 0, chat.stderr
    assert run("train", "--demo").exit_code == 2  # the folder already contains a run
    assert run("train", "--demo", "--tokens", 5).exit_code == 2


def test_the_stories_of_the_demo_match_their_prompts() -> None:
    """Each story names the hero and the thing of its prompt. The stories of a pair differ only in their end."""
    from llmcli.train import demo

    lines = list(demo.lines())
    assert len(lines) == demo.STORIES + demo.PAIRS
    assert len({line.get("completion") for line in lines}) > 0.95 * demo.STORIES
    for line in lines:
        story = line.get("completion") or line["chosen"]
        for word in re.findall(r"\ba (\w+)", line["prompt"].replace("a story", "")):
            assert f" {word}" in story, line
        assert " a owl" not in story
        assert "{" not in story
        if "chosen" in line:
            ends = [line[name].split(". ") for name in ("chosen", "rejected")]
            assert ends[0] != ends[1]
            assert ends[0][:2] == ends[1][:2]


def test_errors(run: Run, model: Path, corpus: Path, tmp_path: Path) -> None:
    out, recipe = tmp_path / "m", tmp_path / "all.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    for args, message in (
        (("--method", "sft"), "--init"),
        (("--init", model, "--hidden-size", 8), "hidden_size"),
        (("--init", model, "--recipe", recipe), "vocab_size"),
        (("--recipe", recipe, "--tokens", 5), "--recipe and --tokens cannot be combined"),
        (("--recipe", tmp_path / "none.toml"), "no such file"),
        (("--init", tmp_path / "none"), "none"),
        (("--plain", 3), "plain"),
        (("--resume", "--init", model), "--resume cannot change --init"),
    ):
        result = run("train", corpus, "--out", out, *args)
        assert result.exit_code in (1, 2), result.stderr
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
        assert not out.exists()
    result = run("train", corpus, "--out", model, "--init", model, *SHORT)
    assert result.exit_code == 2
