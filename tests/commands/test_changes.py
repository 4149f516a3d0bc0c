"""`--ablate` and `--steer` in the commands that have them, and `steer`, which makes the directions."""

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


def test_a_config_file_may_have_options_that_need_each_other(run: Callable[..., Result], tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('ablate = ["mlp.1"]\nablate-with = "zero"\nsteer = "x"\nstrength = 2\n', encoding="utf-8")
    assert run("config", "generate", env={"LLMCLI_CONFIG": str(config)}).exit_code == 0


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
    for how in ("mean:x", "zero"):
        done = run("generate", "The fox", "-m", model, "--ablate-with", how)
        assert (done.exit_code, "without --ablate" in done.stderr) == (2, True)


STEERED = ("generate", "score", "explain-step")


@pytest.fixture
def direction(run: Callable[..., Result], model: Path, tmp_path: Path) -> Path:
    for name, animal in (("foxes", "fox"), ("hens", "hen")):
        (tmp_path / name).write_text(f"The old {animal}\n\nA {animal}\nThe little {animal}\n")
    done = run("steer", tmp_path / "foxes", tmp_path / "hens", tmp_path / "fox.gguf", "-m", model)
    assert done.exit_code == 0, done.stderr
    assert "saved" in done.stderr
    return tmp_path / "fox.gguf"


def test_commands_add_a_direction(run: Callable[..., Result], model: Path, direction: Path) -> None:
    for command in STEERED:
        args = [command, *COMMANDS[command], "-m", model]
        plain, steered = run(*args), run(*args, "--steer", direction, "--strength", "3")
        assert steered.exit_code == 0, steered.stderr
        assert "steered by 3 x fox.gguf" in steered.stdout
        assert plain.stdout != steered.stdout.replace(" steered by 3 x fox.gguf", "")
    done = run("compare", "The old fox met a hen", "-m", model, "--json", "--steer", direction, "--layer", "1")
    assert json.loads(done.stdout)["mean_kl"] > 1e-9
    chat = run("chat", "--raw", "-n", "2", "-m", model, "--steer", direction, input="The old\n")
    assert chat.exit_code == 0, chat.stderr
    assert "steered by 1 x fox.gguf" in chat.stderr


def test_directions_that_cannot_be_found_or_added(
    run: Callable[..., Result], model: Path, direction: Path, tmp_path: Path
) -> None:
    sets = (direction.parent / "foxes", direction.parent / "hens")
    (tmp_path / "one").write_text("Only one line")
    for args in (
        ("steer", *sets, tmp_path / "x.txt"),
        ("steer", *sets),
        ("steer", *sets, tmp_path / "x.gguf", "--layer", "0"),
        ("steer", sets[0], tmp_path / "one", tmp_path / "x.gguf"),
        ("generate", "The", "--strength", "2"),
        ("generate", "The", "--layer", "1"),
        ("generate", "The", "--steer", direction, "--layer", "0"),
        ("generate", "The", "--steer", direction, "--prompt-cache", tmp_path / "cache"),
    ):
        done = run(*args, "-m", model)
        assert done.exit_code == 2, args
        assert done.stdout == ""
    assert run("generate", "The", "--steer", tmp_path / "one", "-m", model).exit_code == 1
    assert not (tmp_path / "x.gguf").exists()
