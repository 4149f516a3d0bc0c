"""``llmcli train``: the folder it makes, its help, --resume and errors."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import Result

from llmcli.train import METHOD_DEFAULTS, Metrics, MetricsFile, Recipe, Shape
from tests.commands.conftest import TEXTS

Run = Callable[..., Result]
SMALL = (
    *("--vocab-size", 300, "--hidden-size", 16, "--intermediate-size", 24, "--num-hidden-layers", 1),
    *("--num-attention-heads", 2, "--num-key-value-heads", 1, "--context", 16, "--batch-size", 2),
    *("--tokens", 320, "--validate-every", 4),
)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus.txt").write_text("<|endoftext|>".join(TEXTS), encoding="utf-8")
    return tmp_path / "corpus.txt"


def test_a_trained_model_generates_and_can_be_resumed(run: Run, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    result = run("train", corpus, "--out", out, *SMALL)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert "step 10/10" in result.stderr
    assert "bits per byte" in result.stderr
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 10
    assert (out / "loss.svg").read_text().startswith("<svg")
    assert run("generate", "The", "-m", out, "-n", 3).exit_code == 0
    (tmp_path / ".m.0123456789abcdef.part").touch()  # of a run that was killed when its folder was complete
    again = run("train", corpus, "--out", out, "--resume", "--tokens", 480)
    assert again.exit_code == 0, again.stderr
    assert not list(tmp_path.glob(".m.*"))
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 15
    corpus.write_text(corpus.read_text(encoding="utf-8") + "!", encoding="utf-8")
    other = run("train", corpus, "--out", out, "--resume", "--tokens", 640)
    assert (other.exit_code, other.stderr.count("\n")) == (2, 1)
    assert "was trained on different text (use the same files as before" in other.stderr


def test_help_shows_the_defaults_of_the_recipe(run: Run) -> None:
    text = run("train", "--help").stdout
    values = {**asdict(Recipe()), **asdict(Shape())}
    del values["shape"]
    for name, value in values.items():
        entry = text[text.rindex(f"\n  --{name.replace('_', '-')} ") :]
        shown = " ".join(entry.split("[default: ")[1].split("]")[0].split())
        others = [f"{method}: {given[name]}" for method, given in METHOD_DEFAULTS.items() if name in given]
        assert shown == "; ".join([str(value), *others]), name


def test_a_run_without_a_checkpoint_can_be_started_again(run: Run, corpus: Path, tmp_path: Path) -> None:
    too_long = run("train", corpus, "--out", tmp_path / "m", *SMALL, "--context", 100_000)
    assert (too_long.exit_code, "fewer than one context" in too_long.stderr) == (1, True)
    assert not (tmp_path / "m").exists()
    assert run("train", corpus, "--out", tmp_path / "m", "--resume").exit_code == 2
    assert run("train", corpus, "--out", tmp_path / "m", *SMALL).exit_code == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_saves_the_run_and_says_how_to_resume(
    run: Run, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out, number, append = tmp_path / "m", getattr(signal, name), MetricsFile.append

    def end_at_step_3(file: MetricsFile, metrics: Metrics) -> None:
        append(file, metrics)
        if metrics.step == 3:
            signal.raise_signal(number)

    monkeypatch.setattr(MetricsFile, "append", end_at_step_3)
    before = signal.getsignal(number)
    result = run("train", corpus, "--out", out, *SMALL)
    assert result.exit_code == 128 + number
    assert "interrupted; to continue, add --resume to the same command" in result.stderr
    assert signal.getsignal(number) == before
    monkeypatch.setattr(MetricsFile, "append", append)
    again = run("train", corpus, "--out", out, "--resume")
    assert again.exit_code == 0, again.stderr
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [*range(1, 11)]


def test_samples_show_their_prompt(run: Run, corpus: Path, tmp_path: Path) -> None:
    """A continuation begins where the prompt ends, in the middle of a line and perhaps of a word."""
    result = run("train", corpus, "--out", tmp_path / "m", *SMALL, "--sample", "The old f")
    samples = [line for line in result.stderr.splitlines() if line.startswith("  | The old f")]
    assert len(samples) == 3
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"prompt": "A fox?", "completion": "The fox met a hen."}\n' * 40, encoding="utf-8")
    tuned = ("--init", tmp_path / "m", "--method", "sft", "--context", 16, "--batch-size", 2, "--tokens", 320)
    result = run("train", requests, "--out", tmp_path / "s", *tuned, "--sample", "Tell me", "--validate-every", 10)
    lines = result.stderr.splitlines()
    at = lines.index("  | > Tell me")
    assert lines[at + 1].startswith("  | ")


def test_errors(run: Run, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    for args, code, message in (
        ((tmp_path / "none.txt", "--out", out), 1, "none.txt"),
        ((corpus, "--out", out, "--resume"), 2, "no run"),
        ((corpus, "--out", out, "--seed", "-1"), 2, "at least 0"),
        ((corpus, "--out", out, "--threads", "100000"), 2, "threads"),
        ((corpus, "--out", "x" * 5000), 1, "x" * 100),
        ((corpus, "--out", out, "--tokens", "0"), 2, "tokens"),
        ((corpus, "--out", out, "--hidden-size", "7"), 2, "hidden_size"),
        ((corpus, "--out", out, "--learning-rate", "inf"), 2, "learning_rate"),
        ((corpus, "--out", out, "--learning-rate", "nan"), 2, "--learning-rate"),
        ((corpus, "--out", out, "--weight-decay", "inf"), 2, "weight_decay"),
        ((corpus,), 2, "--out"),
        (("--out", out), 2, "CORPUS"),
        ((corpus, "--out", out, "--demo"), 2, "--demo"),
    ):
        result = run("train", *args)
        assert result.exit_code == code, result.stderr
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
        assert not (out / "recipe.toml").exists()
    assert run("train", corpus, "--out", out, *SMALL).exit_code == 0
    result = run("train", corpus, "--out", out, *SMALL)
    assert (result.exit_code, "already contains a run" in result.stderr) == (2, True)
    result = run("train", corpus, "--out", out, "--resume", "--context", 8)
    assert (result.exit_code, "--context" in result.stderr) == (2, True)


def test_another_model_is_not_overwritten(run: Run, corpus: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "other"
    assert run("quantize", model, out).exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    result = run("train", corpus, "--out", out, *SMALL)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert f"{out} contains another model" in result.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
