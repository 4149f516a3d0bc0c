"""Activation functions: every one of transformers' that has no parameters, by its names in config.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers.activations import ACT2FN

from llmcli.model import mlp
from llmcli.model.families.fields import ACTIVATIONS
from tests.tiny import CPU, TinyFactory, load, load_with_transformers, random_ids


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "xielu"])  # which has parameters
def test_activations_are_those_of_transformers(name: str) -> None:
    x = torch.linspace(-8, 8, 4001)
    torch.testing.assert_close(mlp.ACTIVATIONS[ACTIVATIONS[name]](x), ACT2FN[name](x), rtol=2e-6, atol=1e-6)


def test_all_activations_differ() -> None:
    x = torch.linspace(-8, 8, 100)
    results = [activate(x) for activate in mlp.ACTIVATIONS.values()]
    assert all(not torch.allclose(a, b, atol=1e-5) for i, a in enumerate(results) for b in results[:i])


@pytest.mark.parametrize(
    ("case", "key", "name"),
    [
        ("llama", "hidden_act", "quick_gelu"),
        ("gemma2", "hidden_activation", "gelu_fast"),
        ("gpt2", "activation_function", "relu"),
        ("gpt_neox", "hidden_act", "gelu_python"),
        ("mixtral", "hidden_act", "relu2"),
    ],
)
def test_a_model_with_another_activation(tiny: TinyFactory, tmp_path: Path, case: str, key: str, name: str) -> None:
    folder = Path(shutil.copytree(tiny(case).folder, tmp_path / "model"))
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {key: name}))
    ids = random_ids(20, seed=0)
    ours = load(folder, device=CPU, dtype=torch.float32)
    with torch.no_grad():
        assert (ours(ids) - load_with_transformers(folder)(ids).logits).abs().max() <= 1e-4
