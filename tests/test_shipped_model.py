"""The shipped model generates the recorded tokens, agrees with transformers, and is small."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

import llmcli
from llmcli import hub
from llmcli.errors import LlmcliError
from tests import golden


def test_it_generates_the_recorded_tokens() -> None:
    expected, actual = json.loads(golden.FILE.read_text(encoding="utf-8")), golden.record()
    logprobs = expected.pop("sampled_logprobs")
    assert actual.pop("sampled_logprobs") == pytest.approx(logprobs, abs=1e-3)
    assert actual == expected


def test_transformers_generates_the_same_tokens() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = hub.find(hub.default_model())
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ours = llmcli.load(str(folder), device="cpu", dtype="float32")
    ids = AutoTokenizer.from_pretrained(folder)("The fox went home and said:", return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == ours.prompt_ids("The fox went home and said:")
    with torch.inference_mode():
        assert torch.allclose(ours.model(ids), theirs(ids).logits, atol=1e-4)
    generated = theirs.generate(torch.tensor([ours.prompt_ids(golden.PROMPT)]), max_new_tokens=60, do_sample=False)
    expected = json.loads(golden.FILE.read_text(encoding="utf-8"))
    assert generated[0].tolist() == expected["prompt_ids"] + expected["greedy_ids"]


def test_its_weights_are_at_most_24_mebibytes() -> None:
    assert (hub.find(hub.default_model()) / "model.safetensors").stat().st_size <= 24 * 2**20


def test_the_model_card_has_the_required_statements() -> None:
    card = (hub.find(hub.default_model()) / "README.md").read_text(encoding="utf-8")
    assert hub.default_model().startswith("llama")
    assert card.startswith("# Llama")
    for words in ("Built with Llama", "African Storybook Initiative", "CC-BY", "bits per byte", "Apache-2.0", "MIT"):
        assert words in card, words


def test_finding_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path comes before the name of a shipped model, which is looked up in the package before the repository."""
    for where in ("installed", "clone"):
        (tmp_path / where / "m").mkdir(parents=True)
        (tmp_path / where / "m" / "config.json").write_text("{}")
    monkeypatch.setattr(hub.local, "SHIPPED_FOLDERS", (tmp_path / "installed", tmp_path / "clone"))
    assert hub.find("m") == tmp_path / "installed" / "m"
    assert hub.find(str(tmp_path / "clone" / "m")) == tmp_path / "clone" / "m"
    assert hub.default_model() == "m"
    monkeypatch.setattr(hub.local, "SHIPPED_FOLDERS", (tmp_path / "nothing",))
    with pytest.raises(LlmcliError):
        hub.default_model()


def test_the_wheel_contains_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls hatchling directly, since pip would download it for every test run, and ziglang, too.

    Without the build hook, which would replace the native engine that the other tests use.
    """
    monkeypatch.setenv("HATCH_BUILD_NO_HOOKS", "true")
    builder = pytest.importorskip("hatchling.builders.wheel")
    root = Path(__file__).parents[1]
    (wheel,) = builder.WheelBuilder(str(root)).build(directory=str(tmp_path))
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md"):
        assert f"llmcli/weights/{hub.default_model()}/{name}" in names
    assert not [name for name in names if name.startswith(("tests", "docs"))]
