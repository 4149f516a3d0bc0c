"""`steer` against float64 by hand, llama.cpp's control vectors, properties, files, mistakes."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.explain.interventions import steering as module
from llmcli.explain.interventions.steering import steer, steered
from llmcli.files.safetensors import write_tensors
from llmcli.storage.directions import Directions, read_directions, write_directions
from tests.explain.reference import loaded, record_pass
from tests.explain.test_ablate import edited, residual
from tests.parity import CLOSE
from tests.storage.test_gguf_export import export, tokenizer_metadata, write_model
from tests.tiny import CPU, Tiny, TinyFactory, load, random_ids

POSITIVE = [[*random_ids(9, seed=seed)[0].tolist(), 3] for seed in range(4)]
NEGATIVE = [[*random_ids(9, seed=seed)[0].tolist(), 4] for seed in range(4)]


def states_by_transformers(case: Tiny, texts: list[list[int]]) -> Tensor:
    """The residual stream after each layer at each text's last position, [texts, L, C]."""
    return torch.stack([torch.stack([x[-1] for x in record_pass(case, ids).residual]) for ids in texts])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "mixtral", "nemotron_h"])
def test_the_direction_is_the_difference_of_transformers_means(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    report = steer(loaded(case), POSITIVE, NEGATIVE[:3], layers="0-1")
    assert report.check.ok, report.check
    means = [states_by_transformers(case, texts).mean(dim=0) for texts in (POSITIVE, NEGATIVE[:3])]
    for layer in (0, 1):
        expected = (means[0] - means[1])[layer]
        error = (report.directions.vectors[layer].double() - expected).abs().max()
        assert float(error) <= CLOSE * max(float(expected.abs().max()), 1)
        assert report.layers[layer].length == pytest.approx(float(expected.norm()), rel=1e-3)


def test_the_principal_component_maximizes_the_pairs_differences(tiny: TinyFactory) -> None:
    case = tiny("llama")
    report = steer(loaded(case), POSITIVE, NEGATIVE, method="pca", layers="1")
    differences = states_by_transformers(case, POSITIVE)[:, 1] - states_by_transformers(case, NEGATIVE)[:, 1]
    found = report.directions.vectors[1].double()
    values, vectors = np.linalg.eigh((differences.T @ differences).numpy())
    first = torch.from_numpy(vectors[:, -1])
    assert abs(float(found @ first)) == pytest.approx(float(found.norm()), rel=1e-4)
    assert float(found @ differences.mean(dim=0)) > 0
    assert float(found.norm()) == pytest.approx(abs(float(first @ differences.mean(dim=0))), rel=1e-3)
    assert values[-1] > values[-2]


def test_accuracy_and_separation_by_hand() -> None:
    """Two features: the sets differ in the first. One positive text is on the wrong side."""
    positive = torch.tensor([[2.0, 0], [3, 1], [-4, 0], [2, -1]]).double()
    negative = torch.tensor([[-2.0, 0], [-3, 1], [-2, 0]]).double()
    found = module._left_out(positive, negative, "mean")
    for number, (own, other) in enumerate(((positive, negative), (negative, positive))):
        for index in range(len(own)):
            rest = torch.cat([own[:index], own[index + 1 :]])
            direction = (rest.mean(0) - other.mean(0)) * (1 - 2 * number)
            expected = (own[index] - (rest.mean(0) + other.mean(0)) / 2) @ direction / math.sqrt(direction @ direction)
            assert float(found[number][index]) == pytest.approx(float(expected))
    assert [bool(x > 0) for x in found[0]] == [True, True, False, True]
    assert all(x < 0 for x in found[1])


def test_steering_adds_the_direction_as_a_hook_on_transformers_does(tiny: TinyFactory) -> None:
    for name in ("llama", "gpt_neox", "gemma3_text"):
        case = tiny(name)
        vectors = {layer: torch.linspace(-1, 1, case.reference.config.hidden_size) * (1 + layer) for layer in (0, 1)}
        ours = steered(loaded(case), Directions(vectors), -1.5, "0", "x")
        expected = edited(case, [("after", 0, lambda x, v=vectors[0]: x - 1.5 * v)])  # type: ignore[misc]
        mine = ours.model.unembed(residual(ours.model, [5]))
        assert float((mine - expected).abs().max()) <= CLOSE
        assert ours.name == f"{name} steered by -1.5 x x"
        nothing = steered(loaded(case), Directions(vectors), 0.0)
        assert float((residual(nothing.model, []) - residual(loaded(case).model, [])).abs().max()) == 0


def test_llama_cpp_adds_a_control_vector_to_the_same_layers(tmp_path: Path) -> None:
    """The file is read by the package gguf, as llama.cpp's own loader does: row L - 1 is for layer L."""
    llama_cpp = pytest.importorskip("llama_cpp")
    reader = pytest.importorskip("gguf")
    folder = write_model(tmp_path / "model", "llama", vocab_size=330)
    export(folder, tmp_path / "model.gguf", "F32", tokenizer_metadata())
    ours = load(folder, device=CPU, dtype=torch.float32)
    size, layers = ours.config.hidden_size, ours.config.num_hidden_layers
    vectors = {layer: torch.randn(size, generator=torch.Generator().manual_seed(layer)) for layer in range(1, layers)}
    write_directions(tmp_path / "x.gguf", Directions(vectors, "llama"))
    tensors = {tensor.name: tensor.data for tensor in reader.GGUFReader(tmp_path / "x.gguf").tensors}
    data = np.zeros((layers, size), dtype=np.float32)
    for name, values in tensors.items():
        data[int(name.split(".")[1]) - 1] = values
    ids = [5, 80, 11, 200, 7]
    model = llama_cpp.Llama(str(tmp_path / "model.gguf"), n_ctx=64, n_threads=1, verbose=False, logits_all=True)
    pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    apply = getattr(llama_cpp, "llama_set_adapter_cvec", None) or llama_cpp.llama_apply_adapter_cvec
    assert apply(model._ctx.ctx, pointer, data.size, size, 1, layers) == 0
    model.eval(ids)
    theirs = torch.from_numpy(np.array(model.scores[: len(ids)]))
    changes = [module.Change(module.Site("residual", n), v, adds=True) for n, v in vectors.items()]
    with torch.no_grad():
        mine, plain = (each(torch.tensor([ids]))[0] for each in (module.changed(ours, changes), ours))
    assert float((mine - theirs).abs().max()) <= 1e-2
    assert float((plain - theirs).abs().max()) > 0.1


@pytest.mark.parametrize("suffix", ["safetensors", "gguf"])
def test_files_hold_what_was_written(tmp_path: Path, suffix: str) -> None:
    vectors = {3: torch.randn(7), 1: torch.randn(7)}
    path = tmp_path / f"x.{suffix}"
    write_directions(path, Directions(vectors, "llama"))
    found = read_directions(path)
    assert list(found.vectors) == [1, 3]
    assert all(torch.equal(found.vectors[layer], vector) for layer, vector in vectors.items())
    assert found.model_type == "llama"


def test_files_that_are_not_directions(tmp_path: Path) -> None:
    with pytest.raises(LlmcliError, match="layer 0"):
        write_directions(tmp_path / "x.gguf", Directions({0: torch.ones(3)}))
    assert not list(tmp_path.iterdir())
    others: dict[str, dict[str, Any]] = {
        "no steering": {"weight": torch.ones(3)},
        "has no": {"direction.1": torch.ones(3, 3)},
        "has no steering directions": {"direction.1": torch.ones(3), "direction.2": torch.ones(4)},
        "not finite": {"direction.1": torch.tensor([1, math.inf])},
    }
    for message, tensors in others.items():
        with (tmp_path / "x").open("wb") as file:
            write_tensors(file, tensors, {})
        with pytest.raises(LlmcliError, match=message):
            read_directions(tmp_path / "x")
    (tmp_path / "y").write_text("nothing")
    for name, message in (("y", "no steering directions"), ("missing", "no such file"), ("", "not a file")):
        with pytest.raises(LlmcliError, match=message):
            read_directions(tmp_path / name)


def test_what_cannot_be_steered(tiny: TinyFactory) -> None:
    ours = loaded(tiny("llama"))
    size = ours.model.config.hidden_size
    for directions, layers in (({1: torch.ones(size)}, "0"), ({1: torch.ones(3)}, None), ({9: torch.ones(size)}, None)):
        with pytest.raises(LlmcliError):
            steered(ours, Directions(directions), 1.0, layers)
    for strength in (math.inf, 1e38, -1e30):
        with pytest.raises(LlmcliError, match="too large"):
            steered(ours, Directions({1: torch.ones(size)}), strength)
    with pytest.raises(LlmcliError, match="nothing tells"):
        steer(ours, POSITIVE, POSITIVE)
    for sets, method in (((POSITIVE[:1], NEGATIVE), "mean"), ((POSITIVE, NEGATIVE[:3]), "pca")):
        with pytest.raises(LlmcliError):
            steer(ours, *sets, method=method)  # type: ignore[arg-type]


def test_the_check_notices_that_another_layer_was_steered(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    case = tiny("llama")
    assert steer(loaded(case), POSITIVE, NEGATIVE).check.ok
    change = module.Change
    monkeypatch.setattr(module, "Change", lambda site, *args, **more: change(site._replace(layer=0), *args, **more))
    assert not steer(loaded(case), POSITIVE, NEGATIVE, layers="1").check.ok
