"""``fit-lens``, and ``lens`` with what it saved."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

TEXT = "The old fox met a hen by the river. " * 200


def test_a_lens_is_fitted_saved_and_used(run: Callable[..., Result], model: Path, tmp_path: Path) -> None:
    own, text = shutil.copytree(model, tmp_path / "own"), tmp_path / "text.txt"
    text.write_text(TEXT)
    missing = run("lens", "The old fox", "-m", own, "--tuned")
    assert missing.exit_code == 1
    assert "llmcli fit-lens tuned" in missing.stderr
    for kind in ("tuned", "jacobian"):
        done = run("fit-lens", kind, text, "-m", own, "--tokens", "256")
        assert done.exit_code == 0, done.stderr
        assert f"{kind} KL, bits" in done.stdout
        assert "check: ok" in done.stdout
        assert (own / "lenses" / f"{kind}.safetensors").is_file()
        report = json.loads(run("lens", "The old fox", "-m", own, f"--{kind}", "--json").stdout)
        assert report["lens"] == kind
        assert report["rows"][0]["kl"] != report["rows"][0]["plain_kl"]
        assert "plain KL" in run("lens", "The old fox", "-m", own, f"--{kind}").stdout
    refused = run("lens", "The old fox", "-m", own, "--tuned", "--dtype", "bfloat16")
    assert "another model" in refused.stderr
    assert run("lens", "The old fox", "-m", own, "--tuned", "--jacobian").exit_code == 2
    assert "quantized" in run("fit-lens", "tuned", text, "-m", own, "--quantize", "int8").stderr


def test_a_report_as_json_and_as_a_picture(run: Callable[..., Result], model: Path, tmp_path: Path) -> None:
    own, text, picture = shutil.copytree(model, tmp_path / "own"), tmp_path / "text.txt", tmp_path / "lens.svg"
    text.write_text(TEXT)
    done = run("fit-lens", "tuned", text, "-m", own, "--tokens", "256", "--json", "--save", picture)
    report = json.loads(done.stdout)
    assert list(report) == ["model", "dtype", "kind", "path", "tokens", "held_out", "layers", "check"]
    assert report["layers"][0].keys() == {"layer", "plain_kl", "kl"}
    assert report["path"] == str(own / "lenses" / "tuned.safetensors")
    assert report["check"]["ok"]
    assert "fit-lens" in picture.read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_leaves_it_to_llmclis(
    run: Callable[..., Result], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **more: mode != os.W_OK and access(path, mode, **more))
    monkeypatch.setattr("llmcli.commands.options.lens_file.config_folder", lambda: tmp_path / "settings")
    done = run("fit-lens", "tuned", text, "-m", model, "--tokens", "128")
    assert done.exit_code == 0, done.stderr
    assert len(list((tmp_path / "settings" / "lenses").iterdir())) == 1
    assert json.loads(run("lens", "A fox", "-m", model, "--tuned", "--json").stdout)["lens"] == "tuned"
