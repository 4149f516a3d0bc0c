"""Quantized model folders: every family loads with the same bits, and errors name exactly what is wrong."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmcli.errors import EXIT_FAILURE, EXIT_USAGE, LlmcliError
from llmcli.files.names import INDEX, WEIGHTS
from llmcli.model.families import family_of
from llmcli.model.transformer import Transformer
from llmcli.storage import checkpoint
from llmcli.storage.checkpoint import Checkpoint
from llmcli.storage.quantize import Quantization, quantize
from llmcli.storage.quantized_checkpoint import copy_rest, quantization_in, save_quantized
from tests.tiny import CASES, CPU, random_ids
from tests.wide import raw_config, wide_model

QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "int4")
BITS = {"int8": 8, "int4": 4}


def quantized(model: Transformer, quantization: Quantization) -> Transformer:
    other = copy.deepcopy(model)
    quantize(other, quantization)
    return other


def assert_same(ours: Transformer, theirs: Transformer) -> None:
    """Both models have the same parameters and the same logits, bit for bit."""
    a, b = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert a.keys() == b.keys()
    for name, parameter in a.items():
        assert parameter.dtype == b[name].dtype, name
        assert torch.equal(parameter, b[name]), name
        assert not parameter.requires_grad
    ids = random_ids(70, seed=6)
    with torch.inference_mode():
        assert torch.equal(ours(ids), theirs(ids))


@pytest.mark.parametrize(("quantization", "dtype"), [("int8", torch.bfloat16), ("int4", torch.float32)])
@pytest.mark.parametrize("name", CASES)
def test_a_saved_model_loads_as_the_model_quantized_in_place(
    name: str, quantization: Quantization, dtype: torch.dtype, tmp_path: Path
) -> None:
    raw = raw_config(name)
    model = wide_model(raw, dtype=dtype)
    save_quantized(model, quantization, tmp_path, raw)
    assert_same(Checkpoint.read(tmp_path).load(device=CPU), quantized(model, quantization))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS]
    written = json.loads((tmp_path / "config.json").read_text())
    assert written.pop("quantization_config") == {
        "quant_method": "llmcli",
        "bits": BITS[quantization],
        "group_size": 32,
    }
    assert written.pop("dtype") == str(dtype).removeprefix("torch.")
    assert written == {key: value for key, value in raw.items() if key != "dtype"}


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_it_computes_in_the_requested_dtype(quantization: Quantization, tmp_path: Path) -> None:
    raw = raw_config("gpt2")
    model = wide_model(raw, dtype=torch.bfloat16)
    save_quantized(model, quantization, tmp_path, raw)
    assert Checkpoint.read(tmp_path).load(device=CPU).dtype == torch.bfloat16
    ours = Checkpoint.read(tmp_path).load(device=CPU, dtype=torch.float32)
    assert ours.dtype == torch.float32
    assert_same(ours, quantized(copy.deepcopy(model).float(), quantization))
    seen: list[torch.dtype] = []
    Checkpoint.read(tmp_path).load(device=CPU, dtype=lambda kept: seen.append(kept) or torch.float32)  # type: ignore[func-returns-value]
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_stored_head_overrides_a_tied_config(quantization: Quantization, tmp_path: Path) -> None:
    raw = raw_config("llama")
    model = wide_model(raw)
    save_quantized(model, quantization, tmp_path, raw | {"tie_word_embeddings": True})
    ours = Checkpoint.read(tmp_path).load(device=CPU)
    assert ours.head is not None
    assert_same(ours, quantized(model, quantization))


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_config_of_a_multimodal_gemma3_is_kept(quantization: Quantization, tmp_path: Path) -> None:
    text = raw_config("gemma3_text")
    raw = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 16}}
    model = wide_model(text)
    model.config = family_of(raw).parse(raw)
    save_quantized(model, quantization, tmp_path, raw)
    ours = Checkpoint.read(tmp_path).load(device=CPU)
    assert ours.config.model_type == "gemma3"
    assert_same(ours, quantized(model, quantization))


def test_progress_counts_weights_when_saving_and_modules_when_loading(tmp_path: Path) -> None:
    raw = raw_config("llama")
    saved: list[tuple[int, int]] = []
    loaded: list[tuple[int, int]] = []
    save_quantized(wide_model(raw), "int4", tmp_path, raw, lambda *seen: saved.append(seen))
    Checkpoint.read(tmp_path).load(device=CPU, progress=lambda *seen: loaded.append(seen))
    for seen in (saved, loaded):
        assert len(seen) == 3 * 4 + 2
        assert [done for done, _ in seen] == sorted({done for done, _ in seen})
        assert seen[-1][0] == seen[-1][1] == seen[0][1]


# Damaged folders


@pytest.fixture(params=QUANTIZATIONS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A quantized model to damage, with biases and an untied head."""
    raw = raw_config("llama-biases")
    save_quantized(wide_model(raw, dtype=torch.bfloat16), request.param, tmp_path / "m", raw)
    return tmp_path / "m"


def assert_rejected(folder: Path, *culprits: object, code: int = EXIT_FAILURE, **options: Any) -> None:
    """Assert that loading fails with a one-line error that names every culprit and has a hint."""
    with pytest.raises(LlmcliError) as caught:
        Checkpoint.read(folder).load(**{"device": CPU, **options})
    assert caught.value.exit_code == code
    assert caught.value.hint or caught.value.kind
    assert "\n" not in str(caught.value)
    for culprit in culprits:
        assert str(culprit) in caught.value.message, caught.value.message


def change_tensors(folder: Path, changes: dict[str, Tensor | None]) -> None:
    """Replace, add or (None) remove stored tensors."""
    tensors = load_file(folder / WEIGHTS) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / WEIGHTS)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


NAMES = [  # a tensor of each kind
    "embedding.weight",
    "embedding.scale",
    "blocks.2.attn.qkv.weight",
    "blocks.0.mlp.down.scale",
    "blocks.1.mlp.up.bias",
    "blocks.1.attn_norm.weight",
    "norm.weight",
    "head.weight",
    "head.scale",
]


@pytest.mark.parametrize("name", NAMES)
def test_missing_tensor(folder: Path, name: str) -> None:
    change_tensors(folder, {name: None})
    assert_rejected(folder, folder / WEIGHTS, "missing", name)


def test_a_missing_head_is_not_mistaken_for_a_tied_one(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    change_tensors(folder, {name: None for name in tensors if name.startswith("head.")})
    assert_rejected(folder, "missing", "head.weight", "head.scale")


@pytest.mark.parametrize("name", ["blocks.3.attn.qkv.weight", "blocks.0.attn.qkv.zeros", "x"])
def test_unexpected_tensor(folder: Path, name: str) -> None:
    change_tensors(folder, {name: torch.zeros(3)})
    assert_rejected(folder, folder / WEIGHTS, "unexpected", name)


@pytest.mark.parametrize("name", NAMES)
def test_misshapen_tensor(folder: Path, name: str) -> None:
    tensor = load_file(folder / WEIGHTS)[name]
    change_tensors(folder, {name: torch.cat((tensor, tensor[:1]))})
    assert_rejected(folder, folder / WEIGHTS, "of the wrong shape", name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.uint8, torch.int32, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_tensor_of_another_dtype(folder: Path, name: str, dtype: torch.dtype) -> None:
    """Unquantized tensors may have any float dtype; scales are fp32, and codes have the one dtype of their width."""
    tensor = load_file(folder / WEIGHTS)[name]
    plain = tensor.dtype.is_floating_point and not name.endswith("scale")
    if tensor.dtype == dtype or (plain and dtype.is_floating_point):
        return
    change_tensors(folder, {name: tensor.to(dtype)})
    assert_rejected(folder, folder / WEIGHTS, "of the wrong dtype", name)


def test_wrong_factors(tmp_path: Path) -> None:
    raw = raw_config("llama")
    save_quantized(wide_model(raw), "int4", tmp_path, raw)
    name = "blocks.0.attn.qkv.factors"
    factors = load_file(tmp_path / WEIGHTS)[name]
    for wrong, message in (
        (factors.float(), "of the wrong dtype"),
        (factors[:, :1].clone(), "of the wrong shape"),
        (None, "missing"),
    ):
        change_tensors(tmp_path, {name: wrong})
        assert_rejected(tmp_path, message, name)


def test_plain_weights_with_a_quantized_config(tmp_path: Path) -> None:
    raw = raw_config("llama")
    checkpoint.save(wide_model(raw), tmp_path, raw, dtype=torch.bfloat16)
    change_config(tmp_path, quantization_config={"quant_method": "llmcli", "bits": 8, "group_size": 32})
    assert_rejected(tmp_path, "missing", "unexpected", "lm_head.weight")


@pytest.mark.parametrize(
    "changes", [{"bits": 3}, {"bits": None}, {"bits": "8"}, {"group_size": 64}, {"group_size": None}]
)
def test_unsupported_quantization(folder: Path, changes: dict[str, Any]) -> None:
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    change_config(folder, quantization_config=settings | changes)
    assert_rejected(folder, "config.json", *changes.values())


def test_wrong_number_of_bits(folder: Path) -> None:
    """The tensors of 8 and 4 bits differ in shape."""
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    change_config(folder, quantization_config=settings | {"bits": 12 - settings["bits"]})
    assert_rejected(folder, "qkv.weight")


@pytest.mark.parametrize("config", [None, {}, {"quantization_config": None}, {"quantization_config": "llmcli"}])
def test_other_configs_are_not_quantized_by_llmcli(config: dict[str, Any] | None) -> None:
    assert quantization_in(config or {}) is None
    assert quantization_in({"quantization_config": {"quant_method": "fp8", "bits": 8, "group_size": 32}}) is None


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file(folder: Path, fraction: float) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: int(len(data) * fraction)])
    assert_rejected(folder, folder / WEIGHTS)


def test_missing_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert_rejected(folder, folder / WEIGHTS)


def test_adapters_and_other_devices_are_rejected(folder: Path, tmp_path: Path) -> None:
    assert_rejected(folder, "adapter", code=EXIT_USAGE, adapter=tmp_path)
    for device in ("cuda", "mps", "meta"):
        assert_rejected(folder, f"not on {device}", code=EXIT_USAGE, device=torch.device(device))


# Saving


@pytest.mark.parametrize("again", QUANTIZATIONS)
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_saving_a_quantized_model_quantized_is_rejected(
    quantization: Quantization, again: Quantization, tmp_path: Path
) -> None:
    raw = raw_config("llama")
    model = quantized(wide_model(raw), quantization)
    with pytest.raises(LlmcliError, match="already") as caught:
        save_quantized(model, again, tmp_path / "out", raw)
    assert caught.value.exit_code == EXIT_USAGE
    assert not (tmp_path / "out").exists()


def test_nan_weights_write_nothing(tmp_path: Path) -> None:
    raw = raw_config("llama")
    model = wide_model(raw)
    model.blocks[2].mlp.down.weight[0, 0] = float("nan")
    with pytest.raises(LlmcliError, match=r"blocks\.2\.mlp\.down\.weight"):
        save_quantized(model, "int4", tmp_path / "out", raw)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", [WEIGHTS, "config.json"])
def test_an_interrupted_save_leaves_no_partial_file(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_config("llama")

    waits = iter((False, True) if file == "config.json" else (True,))

    def interrupted(_: int) -> None:
        if next(waits):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_quantized(wide_model(raw), "int8", tmp_path, raw)
    assert sorted(path.name for path in tmp_path.iterdir()) == ([] if file == WEIGHTS else [WEIGHTS])


def test_tokenizer_files_are_copied_and_weights_are_not(tmp_path: Path) -> None:
    copied = {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"}
    copied |= {"merges.txt", "tokenizer.model"}
    others = {"config.json", INDEX, WEIGHTS, "model-00001-of-00002.safetensors", "pytorch_model.bin", "README.md"}
    (tmp_path / "in" / "folder.json").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    for name in copied | others:
        (tmp_path / "in" / name).write_text(name)
    (tmp_path / "in" / "vocab.json").symlink_to(tmp_path / "in" / "merges.txt")  # as in the hub's cache
    copy_rest(tmp_path / "in", tmp_path / "out")
    found = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert found.keys() == copied | {"vocab.json"}
    assert found["vocab.json"].read_text() == "merges.txt"
    assert not found["vocab.json"].is_symlink()
    assert all(found[name].read_text() == name for name in copied)
