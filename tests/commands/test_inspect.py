"""``llmcli inspect``: its output formats, options and errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from llmcli.explain.models import inspection as view
from llmcli.model.device import Memory
from tests.commands.conftest import records

Run = Callable[..., Result]


def test_output_formats_agree(run: Run, model: Path, tmp_path: Path) -> None:
    result = run("inspect", "-m", model, "--dtype", "float32", "--save", tmp_path / "x.svg")
    (record,) = records(run("inspect", "-m", model, "--dtype", "float32", "--json"))
    assert result.exit_code == 0
    assert record["check"]["ok"]
    lines = result.stdout.splitlines()
    assert lines[-2].startswith("check: ok")
    assert lines[-1] == f"model: {model.name}, float32"
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in lines}
    for group in record["groups"]:
        assert rows[group["name"]][:2] == [str(group["parameters"]), repr(group["share"])]
    assert rows["total"][0] == str(record["parameters"])
    assert str(record["needs"][0]["total"]) in rows[record["needs"][0]["weights"]]
    picture = (tmp_path / "x.svg").read_text(encoding="utf-8").replace("&#160;", " ")
    assert "It fits" in picture
    assert "check: ok" in picture
    assert list(record) == [
        *("model", "dtype", "shape", "parameters", "active", "groups", "stored", "others", "disk_bytes", "device"),
        *("tokens", "cache", "needs", "memory", "measured", "check"),
    ]


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantized_models(run: Run, model: Path, tmp_path: Path, kind: str) -> None:
    (predicted,) = records(run("inspect", "-m", model, "--quantize", kind, "--json"))
    assert run("quantize", model, tmp_path / "small", "--to", kind).exit_code == 0
    (stored,) = records(run("inspect", "-m", tmp_path / "small", "--json"))
    assert stored["check"]["ok"]
    assert predicted["check"]["ok"]
    for key in ("parameters", "groups", "measured", "cache"):
        assert stored[key] == predicted[key]
    assert stored["disk_bytes"] < predicted["disk_bytes"]


def test_options_change_the_required_memory(run: Run, model: Path) -> None:
    (wide,) = records(run("inspect", "-m", model, "--dtype", "float32", "--json"))
    (half,) = records(run("inspect", "-m", model, "--dtype", "bfloat16", "--context", 32, "--json"))
    assert 2 * half["needs"][0]["weight_bytes"] == wide["needs"][0]["weight_bytes"]
    assert 4 * half["cache"]["needed"] == wide["cache"]["needed"]  # half the tokens, at half the bytes each
    assert half["tokens"] == 32


def test_a_model_that_does_not_fit_is_not_loaded(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (record,) = records(run("inspect", "-m", model, "--json"))
    between = (record["needs"][0]["total"] + record["needs"][1]["total"]) // 2
    for memory, hint in ((between, "it fits with --quantize int8"), (1, "a smaller model")):
        monkeypatch.setattr(view, "memory_of", lambda device, memory=memory: Memory(None, memory))
        result = run("inspect", "-m", model)
        assert result.exit_code == 0
        assert "It does not fit" in result.stdout
        assert "container" in result.stdout
        assert hint in result.stdout
        assert "measured" not in result.stdout


@pytest.mark.parametrize("args", [["--context", "0"], ["--context", "x"], ["a prompt"], ["--save", "x.png"]])
def test_invalid_command_lines_are_one_line(run: Run, model: Path, args: list[str]) -> None:
    result = run("inspect", "-m", model, *args)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


def test_a_damaged_folder_is_one_line(run: Run, tmp_path: Path) -> None:
    result = run("inspect", "-m", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
