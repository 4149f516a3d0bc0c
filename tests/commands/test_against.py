"""``llmcli verify --against``: an exported file passes, and each kind of damage fails its own proof."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

from tests.commands.conftest import records

Run = Callable[..., Result]
SENTENCE = "The old fox met a hen by the river."


def verdicts(run: Run, file: Path, original: Path) -> dict[str, str]:
    (record,) = records(run("verify", SENTENCE, "-m", file, "--against", original, "--json", "--device", "cpu"))
    found = {proof["name"].split()[0]: proof["verdict"] for proof in record["proofs"] if "original" in proof["name"]}
    assert len(found) == 5
    assert record["check"]["ok"] == ("failed" not in [proof["verdict"] for proof in record["proofs"]])
    return found


@pytest.mark.parametrize("kind", ["f32", "bf16", "q8_0", "q4_0"])
def test_an_exported_file_is_faithful(run: Run, chat_model: Path, tmp_path: Path, kind: str) -> None:
    assert run("export", chat_model, tmp_path / "a.gguf", "--type", kind).exit_code == 0
    assert set(verdicts(run, tmp_path / "a.gguf", chat_model).values()) == {"ok"}


def test_the_mean_and_the_largest_kl_are_those_of_compare(run: Run, chat_model: Path, tmp_path: Path) -> None:
    assert run("export", chat_model, tmp_path / "a.gguf", "--type", "q4_0").exit_code == 0
    options = ("verify", SENTENCE, "-m", tmp_path / "a.gguf", "--against", chat_model, "--device", "cpu")
    (record,) = records(run(*options, "--json"))
    (proof,) = [proof for proof in record["proofs"] if proof["name"] == "logits ~ original"]
    (compared,) = records(run("compare", SENTENCE, "-m", chat_model, "-m", tmp_path / "a.gguf", "--summary", "--json"))
    assert 0 < proof["error"] < proof["largest_kl"] == pytest.approx(compared["kl"]["largest"], rel=1e-3)
    line = f"logits ~ original: KL divergence: mean {proof['error']:.3g}, largest {proof['largest_kl']:.3g} bits"
    assert line in run(*options).stdout


def template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("}}: {{", "}} : {{"))


def tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text())
    ids = raw["model"]["vocab"]
    a, b = list(ids)[-2:]
    ids[a], ids[b] = ids[b], ids[a]
    path.write_text(json.dumps(raw))


def config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1e-3}))


def weights(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if "q_proj" in name)
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, path, {"format": "pt"})


def permuted(folder: Path) -> None:
    weights(folder, lambda tensor: tensor.roll(len(tensor) // 2, 0))


def damaged(folder: Path) -> None:
    weights(folder, torch.zeros_like)


@pytest.mark.parametrize("kind", ["f32", "q4_0"])
@pytest.mark.parametrize(
    ("damage", "row"),
    [(template, "template"), (tokens, "tokens"), (config, "config"), (permuted, "weights"), (damaged, "weights")],
)
def test_damage_fails_its_own_proof(
    run: Run, chat_model: Path, tmp_path: Path, damage: Callable[[Path], None], row: str, kind: str
) -> None:
    shutil.copytree(chat_model, tmp_path / "other")
    damage(tmp_path / "other")
    assert run("export", tmp_path / "other", tmp_path / "a.gguf", "--type", kind).exit_code == 0
    found = verdicts(run, tmp_path / "a.gguf", chat_model)
    assert found[row] == "failed"
    assert all(found[name] == "ok" for name in {"tokens", "template", "config"} - {row})
