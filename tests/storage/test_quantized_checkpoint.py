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
from llmcli.storage.headers import read_headers
from llmcli.storage.quantize import Quantization, quantize
from llmcli.storage.quantized_checkpoint import copy_rest, quantization_in, save_quantized
from tests.tiny import CASES, CPU, random_ids
from tests.wide import raw_config, wide_model

QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "int4")
SETTINGS = {
    "int8": {"quant_method": "llmcli", "bits": 8, "group_size": 32, "block_format": "q8_0"},
    "int4": {"quant_method": "llmcli", "bits": 4, "group_size": 32, "block_format": "q4_0"},
}


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


@pytest.mark.parametrize(
    ("name", "quantization", "dtype"),
    [
        *((name, "int4", torch.float32) for name in CASES),
        *((name, "int8", torch.bfloat16) for name in ("llama-biases", "cohere", "mixtral")),
    ],
)
def test_a_saved_model_loads_as_the_model_quantized_in_place(
    name: str, quantization: Quantization, dtype: torch.dtype, tmp_path: Path
) -> None:
    raw = raw_config(name)
    model = wide_model(raw, dtype=dtype)
    save_quantized(model, quantization, tmp_path, raw)
    assert_same(Checkpoint.read(tmp_path).load(device=CPU), quantized(model, quantization))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS]
    written = json.loads((tmp_path / "config.json").read_text())
    assert written.pop("quantization_config") == SETTINGS[quantization]
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
    seen: list[tuple[torch.dtype, int]] = []

    def pick(stored: torch.dtype, float32_bytes: int) -> torch.dtype:
        seen.append((stored, float32_bytes))
        return torch.float32

    Checkpoint.read(tmp_path).load(device=CPU, dtype=pick)
    assert seen == [(torch.bfloat16, sum(parameter.nbytes for parameter in ours.parameters()))]


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
    "blocks.2.attn.qkv.weight",
    "blocks.1.mlp.up.bias",
    "blocks.1.attn_norm.weight",
    "norm.weight",
    "head.weight",
]


def test_missing_tensor(folder: Path) -> None:
    """A missing head is not mistaken for one that is tied to the embedding."""
    stored = load_file(folder / WEIGHTS)
    for name in NAMES:
        change_tensors(folder, stored | {name: None})
        assert_rejected(folder, folder / WEIGHTS, f"tensors missing: {name}")
    change_tensors(folder, dict.fromkeys(stored) | {"head.weight": stored["head.weight"]})
    assert_rejected(folder, f"and {len(stored) - 4} more")


def test_unexpected_tensor(folder: Path) -> None:
    stored = load_file(folder / WEIGHTS)
    for name in ("blocks.3.attn.qkv.weight", "blocks.0.attn.qkv.scale", "x"):
        save_file(stored | {name: torch.zeros(3)}, folder / WEIGHTS)
        assert_rejected(folder, folder / WEIGHTS, f"tensors unexpected: {name}")


def test_misshapen_tensor(folder: Path) -> None:
    """Rows, and bytes of a row of blocks."""
    stored = load_file(folder / WEIGHTS)
    for name in NAMES:
        tensor = stored[name]
        longer = [torch.cat((tensor, tensor[:1])), tensor[None], tensor[1:].clone()]
        if tensor.ndim == 2:
            longer += [tensor[:, :-1].clone(), torch.cat((tensor, tensor), dim=1), tensor.flatten()]
        for wrong in longer:
            save_file(stored | {name: wrong}, folder / WEIGHTS)
            shapes = f"{name} {list(wrong.shape)} instead of {list(tensor.shape)}"
            assert_rejected(folder, folder / WEIGHTS, f"tensors of the wrong shape: {shapes}")


def test_tensor_of_another_dtype(folder: Path) -> None:
    """Blocks are bytes; the other tensors may have any float dtype."""
    stored = load_file(folder / WEIGHTS)
    names = {torch.float32: "F32", torch.float16: "F16", torch.int8: "I8", torch.uint8: "U8", torch.int32: "I32"}
    for name in NAMES:
        blocks = stored[name].dtype == torch.uint8
        for dtype, stated in names.items():
            save_file(stored | {name: stored[name].to(dtype)}, folder / WEIGHTS)
            if dtype == torch.uint8 if blocks else dtype.is_floating_point:
                Checkpoint.read(folder).load(device=CPU)
            else:
                wanted = "U8" if blocks else "F32 or BF16 or F16"
                culprit = f"tensors of the wrong dtype: {name} {stated} instead of {wanted}"
                assert_rejected(folder, folder / WEIGHTS, culprit)


def test_headers_are_checked_as_the_weights_are(folder: Path) -> None:
    stored = load_file(folder / WEIGHTS)
    model = wide_model(raw_config("llama-biases"))
    assert read_headers(Checkpoint.read(folder)).parameters == sum(weight.numel() for weight in model.parameters())
    for name in NAMES:
        for wrong in (None, stored[name][1:].clone(), stored[name].int()):
            change_tensors(folder, stored | {name: wrong})
            with pytest.raises(LlmcliError, match=name):
                read_headers(Checkpoint.read(folder))


def test_plain_weights_with_a_quantized_config(tmp_path: Path) -> None:
    raw = raw_config("llama")
    checkpoint.save(wide_model(raw), tmp_path, raw, dtype=torch.bfloat16)
    change_config(tmp_path, quantization_config=SETTINGS["int8"])
    assert_rejected(tmp_path, "missing: blocks.0.attn.out.weight", "unexpected: lm_head.weight")


def test_unsupported_quantization(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    wrong: dict[str, list[Any]] = {
        "bits": [3, None, "8", 12 - settings["bits"]],
        "group_size": [64, None],
        "block_format": ["q4_1", None, 8, ["q8_0"]],
    }
    for key, values in wrong.items():
        for value in values:
            change_config(folder, quantization_config=settings | {key: value})
            assert_rejected(folder, "config.json", f"{key} {json.dumps(value)}", "not supported")


def test_a_model_of_an_earlier_version_is_to_be_quantized_again(folder: Path) -> None:
    """Its config.json has no block format; its weights, in I8 and with scales, match no other config.json either."""
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    tensors: dict[str, Tensor | None] = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        if tensor.dtype == torch.uint8:
            tensors[name] = torch.zeros(len(tensor), 96, dtype=torch.int8)
            tensors[f"{name.removesuffix('.weight')}.scale"] = torch.ones(len(tensor), 1)
    change_tensors(folder, tensors)
    assert_rejected(folder, "unexpected: ", ".scale", "of the wrong dtype", "I8 instead")
    change_config(folder, quantization_config={key: settings[key] for key in ("quant_method", "bits", "group_size")})
    with pytest.raises(LlmcliError, match=r"config\.json: .*earlier version.*block_format") as caught:
        Checkpoint.read(folder).load(device=CPU)
    assert caught.value.hint == "quantize the original model again"


def test_wrong_number_of_bits(folder: Path) -> None:
    """The tensors of 8 and 4 bits differ in shape, except for the embedding and the head."""
    stated = json.loads((folder / "config.json").read_text())["quantization_config"]
    change_config(folder, quantization_config=SETTINGS["int4" if stated["bits"] == 8 else "int8"])
    with pytest.raises(LlmcliError, match=r"of the wrong shape: blocks\.0\.attn") as caught:
        Checkpoint.read(folder).load(device=CPU)
    assert "embedding" not in caught.value.message
    assert "head" not in caught.value.message


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
