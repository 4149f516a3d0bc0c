"""`--ablate` in the commands that have it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

COMMANDS: dict[str, list[str]] = {
    "generate": ["The old fox met", "-n", "3", "--seed", "1", "--json"],
    "score": ["The old fox met a hen", "--json"],
    "explain-step": ["The old fox met", "--json", "--seed", "1"],
    "lens": ["The old fox met", "--json"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_remove_parts(run: Callable[..., Result], model: Path, command: str) -> None:
    args = [command, *COMMANDS[command], "-m", model]
    plain, removed = run(*args), run(*args, "--ablate", "mlp.1", "--ablate", "0.1")
    assert removed.exit_code == 0, removed.stderr
    assert "without mlp.1, 0.1" in removed.stdout
    assert plain.stdout != removed.stdout.replace(" without mlp.1, 0.1", "")


def test_compare_shows_what_a_part_does(run: Callable[..., Result], model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A hen met the old fox.")
    args = ("compare", "The old fox met a hen", "-m", model, "--json", "--ablate", "mlp.1")
    done = run(*args, "--ablate-with", f"mean:{text}")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["models"][1] == f"{report['models'][0]} without mlp.1"
    assert report["mean_kl"] > 1e-6
    for wrong in (("-m", model), ("--ablate-with", "mean"), ("--ablate-with", "median:x")):
        assert run(*args, *wrong).exit_code == 2
    assert run("compare", "The fox", "-m", model).exit_code == 2


def test_options_that_exclude_ablation(run: Callable[..., Result], model: Path, tmp_path: Path) -> None:
    for more in (
        ("--prompt-cache", tmp_path / "cache"),
        ("--tensor-parallel", "2"),
        ("--endpoint", "http://localhost:9"),
    ):
        done = run("generate", "The fox", "-n", "2", "-m", model, "--ablate", "mlp.1", *more)
        assert done.exit_code == 2
        assert "--ablate" in done.stderr
    assert "--ablate" in run("generate", "The fox", "-m", model, "--ablate-with", "mean:x").stderr
