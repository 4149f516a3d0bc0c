"""``llmcli train`` beyond pre-training: --init, --method, recipes of several runs, samples as it learns."""

from __future__ import annotations

import json
from collections.abc import Callable
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
    assert result.stderr.count("bits a byte") == result.stderr.count("\n  | ") == 2
    result = run("train", corpus, "--out", best, "--init", chatty, "--method", "dpo", *SHORT)
    assert result.exit_code == 0, result.stderr
    assert "nats a pair" in result.stderr
    assert "of the pairs as preferred" in result.stderr
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
    assert (done.exit_code, "all 4 steps are done" in done.stderr) == (0, True)


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
