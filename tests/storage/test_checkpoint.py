"""Model folders: errors name exactly what is wrong, and real models load correctly."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmcli.errors import EXIT_FAILURE, LlmcliError
from llmcli.files.names import CONFIG, INDEX, WEIGHTS
from llmcli.files.safetensors import Entry, TensorFile
from llmcli.model.families import FAMILIES
from llmcli.storage import checkpoint
from llmcli.storage.finite import LoadNotes
from llmcli.storage.quantized_checkpoint import save_quantized
from llmcli.storage.tensors import grouped
from llmcli.text.tokenizer import load_tokenizer
from tests.tiny import CPU, VOCAB, TinyFactory, greedy, load, load_with_transformers, random_ids

SHARED = Path(__file__).parents[3] / "shared" / "checkpoints"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real models are not available")

NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def llama(tiny: TinyFactory, tmp_path: Path) -> Path:
    """A Llama folder to damage."""
    return Path(shutil.copytree(tiny("llama").folder, tmp_path / "llama"))


@pytest.fixture
def gpt2(tiny: TinyFactory, tmp_path: Path) -> Path:
    """A GPT-2 folder to damage."""
    return Path(shutil.copytree(tiny("gpt2").folder, tmp_path / "gpt2"))


def assert_rejected(folder: Path, *culprits: object) -> None:
    """Loading fails with an error that names every culprit and has a hint."""
    with pytest.raises(LlmcliError) as caught:
        load(folder, device=CPU)
    error = caught.value
    assert error.hint.strip()
    assert error.exit_code == EXIT_FAILURE
    for culprit in culprits:
        assert str(culprit) in f"{error.message} {error.hint}"


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, changes: dict[str, Tensor | None]) -> None:
    """Replace, add or (None) remove stored tensors."""
    tensors = load_file(folder / WEIGHTS) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / WEIGHTS)


def shard(folder: Path, index: object) -> None:
    """Split the weights into a.safetensors (the embedding) and b.safetensors (the others), with the given index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    save_file({EMBEDDING: tensors.pop(EMBEDDING)}, folder / "a.safetensors")
    save_file(tensors, folder / "b.safetensors")
    (folder / INDEX).write_text(index if isinstance(index, str) else json.dumps(index))


BOTH = {"weight_map": {EMBEDDING: "a.safetensors", NORM: "b.safetensors"}}


# config.json


def test_missing_config(llama: Path) -> None:
    (llama / "config.json").unlink()
    assert_rejected(llama, llama / "config.json", "no such file")


def test_missing_folder(tmp_path: Path) -> None:
    assert_rejected(tmp_path / "nowhere", tmp_path / "nowhere" / "config.json")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"model_type": "llama",}', b"\xff\xfe", b"[" * 100_000, b'{"vocab_size": ' + b"9" * 5000 + b"}"],
    ids=["empty", "unclosed", "comma", "not-text", "deep", "huge-number"],
)
def test_config_that_is_not_json(llama: Path, content: bytes) -> None:
    (llama / "config.json").write_bytes(content)
    assert_rejected(llama, llama / "config.json")


def test_the_line_of_invalid_json_is_named(llama: Path) -> None:
    (llama / "config.json").write_text('{\n "model_type": "llama",\n oops\n}')
    assert_rejected(llama, llama / "config.json", "line 3")


@pytest.mark.parametrize("content", ["[]", "null", "3", '"llama"'])
def test_config_that_is_not_an_object(llama: Path, content: str) -> None:
    (llama / "config.json").write_text(content)
    assert_rejected(llama, llama / "config.json", "object")


@pytest.mark.parametrize("value", ["mamba", 3, ["llama"], {}])
def test_unknown_family(llama: Path, value: object) -> None:
    change_config(llama, model_type=value)
    assert_rejected(llama, "model_type", repr(value), *FAMILIES)


def test_missing_family(llama: Path) -> None:
    change_config(llama, model_type=None)
    assert_rejected(llama, "config.json", "model_type")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "48"),
        ("hidden_size", 48.0),
        ("hidden_size", True),
        ("hidden_size", [48]),
        ("hidden_size", 0),
        ("hidden_size", -48),
        ("vocab_size", 0),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 1.5),
        ("num_attention_heads", 0),
        ("num_attention_heads", -6),
        ("num_key_value_heads", 0),
        ("num_key_value_heads", -2),
        ("head_dim", 15),
        ("max_position_embeddings", 0),
        ("max_position_embeddings", -128),
        ("intermediate_size", {}),
        ("rms_norm_eps", "1e-5"),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", float("inf")),
        pytest.param("rms_norm_eps", 10**400, id="rms_norm_eps-huge"),
        ("rms_norm_eps", -1.0),
        ("tie_word_embeddings", "false"),
        ("tie_word_embeddings", 1),
        ("attention_bias", 0),
        ("mlp_bias", "no"),
        ("hidden_act", "celu"),
        ("hidden_act", ["silu"]),
        ("hidden_act", {}),
        ("hidden_act", 0),
        ("bos_token_id", "1"),
        ("bos_token_id", -2),
        ("eos_token_id", [2, None]),
        ("eos_token_id", True),
    ],
)
def test_wrong_value_in_config(llama: Path, key: str, value: object) -> None:
    change_config(llama, **{key: value})
    names = {"rms_norm_eps": "norm_eps"}
    assert_rejected(llama, "config.json", names.get(key, key))


def test_supported_activations_are_listed(llama: Path) -> None:
    change_config(llama, hidden_act="celu")
    assert_rejected(llama, "hidden_act", "'celu'", "silu", "gelu", "gelu_new", "gelu_pytorch_tanh")


@pytest.mark.parametrize(("key", "value"), [("num_key_value_heads", 4), ("num_attention_heads", 5)])
def test_indivisible_heads(llama: Path, key: str, value: int) -> None:
    change_config(llama, **{key: value})
    assert_rejected(llama, "config.json", f"{key} ({value})", "multiple")


@pytest.mark.parametrize("heads", [5, 7, 96])
def test_indivisible_gpt2_heads(gpt2: Path, heads: int) -> None:
    change_config(gpt2, n_head=heads)
    assert_rejected(gpt2, "config.json", heads, 48)


@pytest.mark.parametrize(
    ("key", "value"), [("scale_attn_weights", False), ("scale_attn_by_inverse_layer_idx", True), ("n_inner", 0)]
)
def test_unsupported_gpt2_settings(gpt2: Path, key: str, value: object) -> None:
    change_config(gpt2, **{key: value})
    assert_rejected(gpt2, "config.json", {"n_inner": "intermediate_size"}.get(key, key))


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        ({"rope_type": "ntk", "factor": 2.0}, "rope_type is 'ntk'"),
        ({"type": "su", "factor": 2.0}, "rope_type is 'su'"),
        ({"type": "mrope", "mrope_section": [16, 24, 24]}, "rope_type is 'mrope'"),
        ({"rope_type": ["linear"], "factor": 2.0}, "rope_type is ['linear']"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "llama3"}, "factor"),
        ({"rope_type": "dynamic"}, "factor"),
        ({"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.0}, "attention_factor"),
        ({"rope_type": "yarn", "factor": 4.0, "attention_factor": "1"}, "attention_factor is '1'"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_fast": 1, "beta_slow": 2}, "beta_fast"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_slow": 0}, "beta_slow"),
        ({"rope_type": "yarn", "factor": 4.0, "truncate": "no"}, "truncate is 'no'"),
        ({"rope_type": "yarn", "factor": 4.0, "mscale": [1.0]}, "mscale is [1.0]"),
        ({"rope_type": "longrope", "factor": 4.0}, "short_factor"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 7}, "long_factor"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": ["1"] * 8}, "long_factor"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [0.0] * 8}, "long_factor"),
        ({"rope_type": "linear", "factor": "2"}, "factor is '2'"),
        ({"rope_type": "linear", "factor": 0}, "factor"),
        ({"rope_type": "linear", "factor": -2.0}, "factor"),
        ({"rope_type": "default", "rope_theta": 0}, "theta"),
        ({"rope_type": "default", "rope_theta": -1.0}, "theta"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}, "freq_factor"),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": -3}, "original_max"),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 2.5}, "original_max"),
        ([1], "rope"),
        ("linear", "rope"),
    ],
)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_wrong_rope_settings(llama: Path, key: str, settings: object, culprit: str) -> None:
    change_config(llama, **({"rope_parameters": None, "rope_theta": 500.0} | {key: settings}))
    assert_rejected(llama, "config.json", culprit)


def test_supported_rope_types_are_listed(llama: Path) -> None:
    change_config(llama, rope_parameters={"rope_type": "ntk", "factor": 2.0})
    assert_rejected(llama, "default", "linear", "dynamic", "yarn", "longrope", "llama3")


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size"])
@pytest.mark.parametrize("value", [2**40, 2**62, 10**30])
def test_absurd_sizes_are_rejected_before_memory_is_allocated(llama: Path, key: str, value: int) -> None:
    change_config(llama, **{key: value})
    assert_rejected(llama, value)


# Weight files


def test_missing_weights(llama: Path) -> None:
    (llama / WEIGHTS).unlink()
    assert_rejected(llama, llama, WEIGHTS)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, INDEX, "tokenizer.json"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 269060552\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html>\n<html><head>", "a web page"),
        (b"", "an empty file"),
    ],
)
def test_another_file_in_place_of_the_right_one(llama: Path, name: str, content: bytes, what: str) -> None:
    if name == INDEX:
        (llama / WEIGHTS).unlink()
    (llama / name).write_bytes(content)
    with pytest.raises(LlmcliError, match=rf"{name}: this is {what}") as caught:
        load_tokenizer(llama) if name == "tokenizer.json" else load(llama, device=CPU)
    assert caught.value.hint


def test_more_layers_than_the_weights_have(tiny: TinyFactory, tmp_path: Path) -> None:
    for case in ("llama", "gpt2"):
        folder = Path(shutil.copytree(tiny(case).folder, tmp_path / case))
        key = "n_layer" if case == "gpt2" else "num_hidden_layers"
        layers = json.loads((folder / CONFIG).read_text())[key]
        change_config(folder, **{key: layers + 1})
        assert_rejected(folder, folder, f"which has {layers + 1} layers, but the weights have {layers}")


def test_fewer_layers_than_the_weights_have_leave_tensors_unused(llama: Path) -> None:
    change_config(llama, num_hidden_layers=2)
    notes = LoadNotes()
    load(llama, device=CPU, notes=notes)
    assert len(notes.unused) == 9
    assert all(name.startswith("model.layers.2.") for name in notes.unused)


def test_only_pickled_weights(llama: Path) -> None:
    (llama / WEIGHTS).rename(llama / "pytorch_model.bin")
    assert_rejected(llama, llama, WEIGHTS, "pickled")


def test_two_shards(llama: Path, tiny: TinyFactory) -> None:
    shard(llama, BOTH)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(load(llama, device=CPU)(ids), tiny("llama").load()(ids))


@pytest.mark.parametrize("missing", [["a"], ["b"], ["a", "b"]])
def test_missing_shards_are_all_named(llama: Path, missing: list[str]) -> None:
    shard(llama, BOTH)
    for name in missing:
        (llama / f"{name}.safetensors").unlink()
    assert_rejected(llama, llama, *(f"{name}.safetensors" for name in missing))


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {NORM: 1}}, {"weight_map": None}])
def test_index_without_weight_map(llama: Path, index: object) -> None:
    shard(llama, index)
    assert_rejected(llama, llama / INDEX, "weight_map")


@pytest.mark.parametrize("index", ["", "{", "[]"])
def test_index_that_is_not_a_json_object(llama: Path, index: str) -> None:
    shard(llama, index)
    assert_rejected(llama, llama / INDEX)


@pytest.mark.parametrize("name", ["../outside.safetensors", "x" * 5000, ""])
def test_index_that_names_a_file_outside_the_folder(llama: Path, name: str) -> None:
    shutil.copy(llama / WEIGHTS, llama.parent / "outside.safetensors")
    shard(llama, {"weight_map": {NORM: name}})
    assert_rejected(llama, llama, "shard", name)


def test_incomplete_index(llama: Path) -> None:
    shard(llama, {"weight_map": {NORM: "b.safetensors"}})
    assert_rejected(llama, EMBEDDING)


# Damaged files


@pytest.mark.parametrize("length", [0, 1, 4, 7, 8, 9, 500, -20_000, -1])
def test_truncated_weights(llama: Path, length: int) -> None:
    path = llama / WEIGHTS
    path.write_bytes(path.read_bytes()[:length])
    assert_rejected(llama, path)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_truncated_shard(llama: Path, length: int) -> None:
    shard(llama, BOTH)
    path = llama / "b.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    assert_rejected(llama, path)


@pytest.mark.parametrize(
    "header",
    [
        b"\xff" * 64,
        b"not json".ljust(64),
        b"[]",
        b'{"x": 1}',
        b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,99]}}',
    ],
    ids=["not-text", "not-json", "list", "not-a-tensor", "bad-offsets"],
)
def test_invalid_header(llama: Path, header: bytes) -> None:
    (llama / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert_rejected(llama, llama / WEIGHTS)


def test_header_longer_than_the_file(llama: Path) -> None:
    (llama / WEIGHTS).write_bytes(b"\xff" * 8 + (llama / WEIGHTS).read_bytes()[8:])
    assert_rejected(llama, llama / WEIGHTS)


# Tensors that do not match config.json


def test_all_missing_tensors_are_named(llama: Path) -> None:
    missing = [EMBEDDING, NORM, "lm_head.weight", "model.layers.2.mlp.up_proj.weight"]
    change_tensors(llama, dict.fromkeys(missing))
    assert_rejected(llama, "missing", *missing)


def test_missing_and_unexpected_tensors_are_named_together(llama: Path) -> None:
    change_tensors(llama, {NORM: None, "model.norm.gain": torch.ones(48), "model.layers.3.x": torch.ones(1)})
    assert_rejected(llama, NORM, "unexpected", "model.norm.gain", "model.layers.3.x")


def test_missing_tensors_of_several_layers_are_grouped(llama: Path) -> None:
    change_config(llama, num_hidden_layers=5)
    change_tensors(llama, {"model.layers.1.mlp.up_proj.weight": None})
    parts = ["input_layernorm", "post_attention_layernorm", *(f"self_attn.{p}_proj" for p in "qkvo")]
    grouped = [f"model.layers.{{3,4}}.{part}.weight" for part in (*parts, "mlp.down_proj", "mlp.gate_proj")]
    assert_rejected(llama, *grouped, "model.layers.{1,3,4}.mlp.up_proj.weight", llama)


def test_runs_of_layers_are_grouped_in_order() -> None:
    """Also of names with a number of any length: Python limits the digits of an int."""
    names = sorted(f"layers.{n}.x" for n in (*range(12), 20, 30, 31))
    assert grouped([*names, "y" + "9" * 5000]) == ["layers.{0..11,20,30,31}.x", "y" + "9" * 5000]


def test_missing_biases(gpt2: Path) -> None:
    change_tensors(gpt2, {"transformer.h.0.attn.c_attn.bias": None})
    assert_rejected(gpt2, "missing", "h.0.attn.c_attn.bias")


def test_weights_of_another_family(llama: Path, gpt2: Path) -> None:
    shutil.copy(gpt2 / WEIGHTS, llama / WEIGHTS)
    assert_rejected(llama, "missing", "unexpected")


@pytest.mark.parametrize("shape", [(47,), (49,), (1, 48), ()])
def test_misshapen_tensor(llama: Path, shape: tuple[int, ...]) -> None:
    change_tensors(llama, {NORM: torch.ones(shape)})
    assert_rejected(llama, llama / WEIGHTS, NORM, list(shape), "[48]")


def test_misshapen_tensor_in_a_shard(llama: Path) -> None:
    change_tensors(llama, {NORM: torch.ones(47)})
    shard(llama, BOTH)
    assert_rejected(llama, llama / "b.safetensors", NORM, "[47]", "[48]")


def test_transposed_gpt2_tensor(gpt2: Path) -> None:
    name = "transformer.h.1.mlp.c_fc.weight"
    change_tensors(gpt2, {name: load_file(gpt2 / WEIGHTS)[name].T.contiguous()})
    assert_rejected(gpt2, gpt2 / WEIGHTS, name, "[192, 48]", "[48, 192]")


def test_wrong_head_dim(llama: Path) -> None:
    change_config(llama, head_dim=8)
    assert_rejected(llama, llama / WEIGHTS, "q_proj", "[96, 48]", "[48, 48]")


@pytest.mark.parametrize("name", [EMBEDDING, NORM])
@pytest.mark.parametrize(
    ("dtype", "stored"),
    [(torch.int64, "I64"), (torch.int8, "I8"), (torch.uint8, "U8"), (torch.bool, "BOOL")],
)
def test_tensor_of_an_unsupported_dtype(llama: Path, name: str, dtype: torch.dtype, stored: str) -> None:
    change_tensors(llama, {name: load_file(llama / WEIGHTS)[name].to(dtype)})
    assert_rejected(llama, llama / WEIGHTS, name, stored, "F32", "BF16", "F16", "F8_E4M3", "F8_E5M2")


@pytest.mark.parametrize("right", ["a.safetensors", "b.safetensors"])
def test_the_index_decides_between_two_shards(llama: Path, right: str) -> None:
    norm = load_file(llama / WEIGHTS)[NORM]
    shard(llama, {"weight_map": {EMBEDDING: "a.safetensors", "lm_head.weight": "b.safetensors", NORM: right}})
    for name in ("a.safetensors", "b.safetensors"):
        save_file(load_file(llama / name) | {NORM: norm if name == right else 2 * norm}, llama / name)
    assert torch.equal(load(llama, device=CPU).norm.weight, norm)


def test_tensor_stored_twice(llama: Path, gpt2: Path) -> None:
    """In two shards between which the index does not decide, or under two names, with and without the prefix."""
    norm = load_file(llama / WEIGHTS)[NORM]
    shard(llama, {"weight_map": {EMBEDDING: "a.safetensors", "lm_head.weight": "b.safetensors"}})
    save_file(load_file(llama / "a.safetensors") | {NORM: 2 * norm}, llama / "a.safetensors")
    assert_rejected(llama, NORM, "twice", "a.safetensors", "b.safetensors")
    change_tensors(gpt2, {"ln_f.weight": torch.ones(48)})
    assert_rejected(gpt2, "ln_f.weight", "twice")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.7])
def test_a_constant_of_the_family_with_another_value(tiny: TinyFactory, tmp_path: Path, value: float) -> None:
    """transformers computes with the stored slope of xIELU at 0, llmcli with the one of all published models."""
    folder = Path(shutil.copytree(tiny("apertus").folder, tmp_path / "model"))
    name = "model.layers.1.mlp.act_fn.beta"
    assert load_file(folder / WEIGHTS)[name] == 0.5
    change_tensors(folder, {name: torch.tensor(value, dtype=torch.bfloat16)})
    assert_rejected(folder, name, "0.5")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_rounded_constant_of_the_family(tiny: TinyFactory, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = Path(shutil.copytree(tiny("apertus").folder, tmp_path / "model"))
    change_tensors(folder, {name: tensor.to(dtype) for name, tensor in load_file(folder / WEIGHTS).items()})
    assert load(folder, device=CPU).dtype == dtype


# Loading and saving


def test_one_tensor_with_the_gates_and_ups_of_all_experts(tiny: TinyFactory, tmp_path: Path) -> None:
    """Qwen 3.5 is published as transformers has it in memory: [experts, 2 I, C], gates before ups."""
    case = tiny("qwen3_5_moe_text")
    folder = Path(shutil.copytree(case.folder, tmp_path / "model"))
    weights = case.reference.state_dict()
    assert weights["model.layers.1.mlp.experts.gate_up_proj"].shape == (5, 48, 48)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
    notes = LoadNotes()
    pairs = zip(load(folder, device=CPU, notes=notes).parameters(), case.load().parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert notes.unused == ()


def test_the_bias_that_chooses_experts_is_not_rounded(tiny: TinyFactory, tmp_path: Path) -> None:
    """transformers keeps it in float32, too."""
    case = tiny("lfm2_moe")
    name = "model.layers.1.feed_forward.expert_bias"
    stored = load_file(case.folder / WEIGHTS)[name]
    assert not torch.equal(stored, stored.bfloat16().float())
    theirs = dict(AutoModelForCausalLM.from_pretrained(case.folder, dtype=torch.bfloat16).named_buffers())[name]
    model = load(case.folder, device=CPU, dtype=torch.bfloat16)
    raw = json.loads((case.folder / CONFIG).read_text())
    checkpoint.save(model, tmp_path / "saved", raw, dtype=torch.bfloat16)
    save_quantized(model, "int8", tmp_path / "quantized", raw)
    for each in (model, load(tmp_path / "saved", device=CPU), load(tmp_path / "quantized", device=CPU)):
        ours = dict(each.named_parameters())["blocks.1.mlp.choice_bias"]
        assert ours.dtype == theirs.dtype == torch.float32
        assert torch.equal(ours, stored)
        assert torch.equal(ours, theirs)
        assert each.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_a_stored_copy_of_a_tied_head_is_dropped(tiny: TinyFactory, tmp_path: Path, name: str) -> None:
    case = tiny(name)
    folder = Path(shutil.copytree(case.folder, tmp_path / name))
    embedding = case.load().embedding.weight
    change_tensors(folder, {"lm_head.weight": embedding.clone()})
    model = load(folder, device=CPU)
    assert model.head is None
    assert torch.equal(model.embedding.weight, embedding)


@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_a_stored_head_that_differs_from_the_embedding_is_used_as_in_transformers(
    tiny: TinyFactory, tmp_path: Path, name: str
) -> None:
    case = tiny(name)
    folder = Path(shutil.copytree(case.folder, tmp_path / name))
    head = torch.randn(VOCAB, 48, generator=torch.Generator().manual_seed(0))
    change_tensors(folder, {"lm_head.weight": head})
    model = load(folder, device=CPU)
    ids = random_ids(20, seed=0)
    with torch.no_grad():
        assert (model(ids) - load_with_transformers(folder)(ids).logits).abs().max() <= 1e-4
        assert (model(ids) - case.reference(ids).logits).abs().max() > 1


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("requested", [None, torch.float32, torch.bfloat16])
def test_dtype_is_the_requested_or_the_stored_one(
    llama: Path, stored: torch.dtype, requested: torch.dtype | None
) -> None:
    tensors = {name: tensor.to(stored) for name, tensor in load_file(llama / WEIGHTS).items()}
    change_tensors(llama, dict(tensors))
    model = load(llama, device=CPU, dtype=requested)
    usual = torch.float32 if stored == torch.float64 else stored
    assert {parameter.dtype for parameter in model.parameters()} == {requested or usual}
    assert torch.equal(model.norm.weight, tensors[NORM].to(requested or usual))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_dtype_may_be_a_function_of_the_stored_one(llama: Path) -> None:
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(llama / WEIGHTS).items()}
    change_tensors(llama, dict(tensors))
    arguments: list[tuple[torch.dtype, int]] = []

    def pick(stored: torch.dtype, float32_bytes: int) -> torch.dtype:
        arguments.append((stored, float32_bytes))
        return torch.float16

    model = load(llama, device=CPU, dtype=pick)
    assert arguments == [(torch.bfloat16, 4 * sum(parameter.numel() for parameter in model.parameters()))]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_progress_counts_bytes_up_to_the_total(llama: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = load(llama, device=CPU, progress=lambda done, total: seen.append((done, total)))
    assert {total for _, total in seen} == {sum(parameter.nbytes for parameter in model.parameters())}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("file", ["config.json", WEIGHTS])
def test_an_interrupted_save_leaves_the_old_files(llama: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    model = load(llama, device=CPU)
    before, raw = (llama / file).read_bytes(), json.loads((llama / "config.json").read_text())

    names = {path.name for path in llama.iterdir()}
    waits = iter((False, True) if file == "config.json" else (True,))

    def interrupted(_: int) -> None:
        if next(waits):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(model, llama, raw, dtype=torch.bfloat16)
    assert (llama / file).read_bytes() == before
    assert {path.name for path in llama.iterdir()} == names


# Real models


@needs_shared
def test_a_trained_model_generates_its_known_text() -> None:
    folder = SHARED / "stories260K"
    expected = json.loads((folder / "expected.json").read_text())
    model = load(folder, device=CPU, dtype=torch.float32)
    prompt, ids = expected["prompt_ids"], expected["greedy_ids"]
    count = len(ids) - len(prompt)
    assert count >= 200
    assert greedy(model, prompt, count) == ids[len(prompt) :]
    with torch.no_grad():
        logits = model(torch.tensor([ids[:16]]))[0, -1, :8]
    known = torch.tensor(expected["logits_last_first8_of_first16tokens"])
    assert (logits - known).abs().max() <= 1e-4


def test_conversion_takes_a_part_of_a_tensor_at_a_time(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last part is smaller than the others; no tensor is ever read whole."""
    expected = load(llama, device=CPU, dtype=torch.float32)
    change_tensors(llama, {name: tensor.to(torch.bfloat16) for name, tensor in load_file(llama / WEIGHTS).items()})
    sizes: list[int] = []
    read_into = TensorFile.read_into

    def spied(file: TensorFile, entry: Entry, target: Tensor, first: int = 0) -> Tensor:
        sizes.append(target.numel())
        return read_into(file, entry, target, first)

    monkeypatch.setattr(TensorFile, "read_into", spied)
    monkeypatch.setattr("llmcli.storage.tensors.PART", 100)
    model = load(llama, device=CPU, dtype=torch.float32)
    assert max(sizes) == 100
    assert sum(sizes) == sum(parameter.numel() for parameter in model.parameters())
    for (name, ours), theirs in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs.bfloat16().float()), name
