"""Recipes and states that were damaged or crafted: an error before anything is allocated or trained."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.model.device import Memory
from llmcli.train import run as running
from llmcli.train import state, vocabulary
from llmcli.train.recipe import read_recipe
from tests.train.test_train import CORPUS, CPU, SMALL, run

ABSURD = [
    *(f"{name} = {10**400}" for name in ("hidden_size", "context", "tokens", "seed", "learning_rate", "beta")),
    "vocab_size = 2147483647",
    "hidden_size = 2147483640\nnum_attention_heads = 1",
    "num_hidden_layers = 2147483647",
    "intermediate_size = 2147483647",
    "context = 2147483647",
    "batch_size = 2147483647",
    "seed = 9223372036854775808",
    "num_key_value_heads = 5",
    "hidden_size = 6",
    "weight_decay = 1e999",
    "learning_rate = 1e308",
]


@pytest.mark.parametrize("text", ABSURD, ids=lambda text: text[:30])
def test_an_absurd_number_in_a_recipe_is_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LlmcliError) as caught:
        read_recipe(path, positions=None)
    assert caught.value.message.startswith(f"{path}: ")
    assert len(caught.value.message) < len(str(path)) + 200
    assert "config.json" not in caught.value.message


def test_a_model_that_does_not_fit_into_memory_is_not_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "memory_of", lambda device: Memory(10**5, None))
    with pytest.raises(LlmcliError, match=r"a model of 2\d,\d{3} parameters needs \d\d\d kB to train"):
        running.begin_run(tmp_path, SMALL, CORPUS, device=CPU)


@pytest.mark.parametrize("text", ["a" * 2500, "été " * 5 + "acgt" * 1000 + "\n", " " * 3000 + "x", "one word"])
def test_the_tokenizer_is_trained_on_words_of_limited_length(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes minutes for a word of a million letters. Nothing of the text is lost."""
    seen = list(vocabulary.parts(text))
    assert "".join(seen) == text
    assert max(len(word) for part in seen for word in re.findall(r"\S+|\s+", part)) <= 1000
    assert seen == [text] or len(text) > 1000
    monkeypatch.setattr(vocabulary, "parts", lambda document: ["wxyz " * 9])
    assert vocabulary.train_tokenizer([text], 300).encode("wxyz").tokens[1:] == ["wxyz"]


# --- states ---

Tensors = dict[str, Tensor]


def without(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}


DAMAGE: dict[str, Callable[[Tensors], Tensors]] = {
    "no tensors": lambda tensors: {},
    "no weights": without("model."),
    "one weight missing": without("model.norm.weight"),
    "no optimizers": without("optimizer."),
    "no second optimizer": without("optimizer.1."),
    "no momentum of one matrix": without("optimizer.0.1."),
    "half of Adam's tensors": without("optimizer.1.0.exp_avg_sq"),
    "another shape": lambda tensors: {**tensors, "model.norm.weight": torch.zeros(3)},
    "another shape of momentum": lambda tensors: {**tensors, "optimizer.0.0.momentum_buffer": torch.zeros(3)},
    "an extra tensor": lambda tensors: {**tensors, "optimizer.x.y.z.w": torch.zeros(1)},
    "an extra kept tensor": lambda tensors: {**tensors, "kept.reference": torch.zeros(1)},
    "Adam's step of 0": lambda tensors: {**tensors, "optimizer.1.0.step": torch.tensor(0.0)},
    "Adam's step is NaN": lambda tensors: {**tensors, "optimizer.1.0.step": torch.tensor(torch.nan)},
    "integers": lambda tensors: {**tensors, "model.norm.weight": torch.zeros(32, dtype=torch.int64)},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    run(SMALL, out, steps=2)
    return out


def resume(trained: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    path = trained / state.FILE
    whole = path.read_bytes()
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata=metadata)
    try:
        run(SMALL, trained, resume=True)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_state_that_is_not_the_runs_own_is_an_error(trained: Path, damage: str) -> None:
    tensors = DAMAGE[damage](load_file(trained / state.FILE))
    with pytest.raises(LlmcliError, match=state.FILE):
        resume(trained, tensors, {"step": "2"})


@pytest.mark.parametrize("step", [None, "", "two", "-1", "1.5", "1e3", "9" * 5000])
def test_a_wrong_number_of_steps_is_an_error(trained: Path, step: str | None) -> None:
    metadata = {} if step is None else {"step": step}
    with pytest.raises(LlmcliError, match="its number of steps is missing or wrong"):
        resume(trained, load_file(trained / state.FILE), metadata)


def test_an_undamaged_state_resumes(trained: Path) -> None:
    resume(trained, load_file(trained / state.FILE), {"step": "2"})
