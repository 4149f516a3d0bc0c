"""Weights that other programs quantized: errors name the format, and 8-bit floats of several programs open."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.files.names import CONFIG, WEIGHTS
from llmcli.storage.checkpoint import Checkpoint
from llmcli.storage.finite import LoadNotes
from llmcli.storage.foreign_formats import scale_block
from tests.packers import Draw, awq, compressed
from tests.tiny import CPU, Tiny, TinyFactory, load

# Settings as published models state them in config.json.
UNSUPPORTED: dict[str, dict[str, Any]] = {
    "GPTQ (7 bits)": {"quant_method": "gptq", "bits": 7, "group_size": 128, "desc_act": False, "sym": True},
    "GPTQ (marlin)": {"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "marlin"},
    "AWQ (8 bits)": {"quant_method": "awq", "bits": 8, "group_size": 128, "version": "gemm", "zero_point": True},
    "AWQ (gemv)": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "GEMV", "zero_point": True},
    "bitsandbytes (af4)": {"load_in_4bit": True, "bnb_4bit_quant_type": "af4"},
    "compressed-tensors int4 (marlin-24)": compressed("int", 4, "marlin-24"),
    "compressed-tensors float6 (mxfp6-pack-quantized)": compressed("float", 6, "mxfp6-pack-quantized"),
    "compressed-tensors int9 (pack-quantized)": compressed("int", 9, "pack-quantized"),
    "compressed-tensors sparse-24-bitmask": compressed("float", 8, "float-quantized")
    | {"sparsity_config": {"format": "sparse-24-bitmask"}},
    "compressed-tensors with transforms of activations": compressed("int", 4, "pack-quantized")
    | {"transform_config": {"config_groups": {"u": {"type": "hadamard"}}}},
    "ModelOpt W4A8_AWQ": {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ", "kv_cache_scheme": None},
    "ModelOpt W4A16_AWQ": {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {"a": {"quant_algo": "FP8"}, "b": {"quant_algo": "W4A16_AWQ", "group_size": 128}},
    },
    "MLX (7 bits)": {"group_size": 64, "bits": 7, "mode": "affine"},
    "MLX (mystery)": {"group_size": 64, "bits": 4, "mode": "mystery"},
    "AQLM": {"quant_method": "aqlm", "in_group_size": 8},
    "HQQ": {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}},
    "torchao": {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}},
    "AutoRound (auto_round)": {"quant_method": "AUTO-ROUND", "bits": 4, "packing_format": "auto_round"},
    "BitNet": {"quant_method": "bitnet", "linear_class": "autobitlinear"},
    "BestQuant": {"quant_method": "BestQuant"},
    "['gptq']": {"quant_method": ["gptq"]},
    "a method that config.json does not name": {"unheard_of": 3},
}


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def llama(tiny: TinyFactory, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny("llama").folder, tmp_path / "llama"))


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_format_in_the_config_is_named(llama: Path, name: str) -> None:
    set_config(llama, quantization_config=UNSUPPORTED[name])
    with pytest.raises(LlmcliError) as caught:
        Checkpoint.read(llama)
    assert caught.value.message == f"llmcli cannot open weights quantized by {name}"
    assert "bfloat16" in caught.value.hint


def test_settings_are_found_wherever_programs_write_them(llama: Path) -> None:
    wrong = UNSUPPORTED["compressed-tensors int9 (pack-quantized)"]
    for place in ({"quantization": UNSUPPORTED["MLX (7 bits)"]}, {"compression_config": wrong}):
        set_config(llama, **{"quantization": None, **place})
        with pytest.raises(LlmcliError, match=r"MLX|compressed-tensors"):
            Checkpoint.read(llama)
    text = {**json.loads((llama / CONFIG).read_text()), "quantization_config": UNSUPPORTED["AWQ (8 bits)"]}
    (llama / CONFIG).write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    with pytest.raises(LlmcliError, match="AWQ"):
        Checkpoint.read(llama)


@pytest.mark.parametrize(
    ("file", "settings", "name"),
    [
        ("quantize_config.json", {"bits": 5, "group_size": 128, "desc_act": True}, r"GPTQ \(5 bits\)"),
        ("quant_config.json", {"zero_point": True, "q_group_size": 128, "w_bit": 3}, r"AWQ \(3 bits\)"),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "W4A8_AWQ"}}, "ModelOpt W4A8_AWQ"),
    ],
)
def test_a_file_beside_the_weights_names_their_format(
    llama: Path, file: str, settings: dict[str, Any], name: str
) -> None:
    """As old programs write it."""
    (llama / file).write_text(json.dumps(settings))
    load(llama, device=CPU)  # the weights are not quantized
    stored = load_file(llama / WEIGHTS)
    del stored[f"{PROJECTION}.weight"]
    packed = {f"{PROJECTION}.{end}": tensor for end, tensor in awq(Draw(96, 48, torch.Generator()))[0].items()}
    save_file(stored | packed, llama / WEIGHTS)
    with pytest.raises(LlmcliError, match=f"cannot open weights quantized by {name}"):
        load(llama, device=CPU)


PROJECTION = "model.layers.1.self_attn.q_proj"
# What is stored in the place of a matrix, by the ends of its name.
TENSORS = {
    "HQQ": ("W_q", "scale", "zero"),
    "EXL2": ("q_weight", "q_scale"),
    "EETQ": ("weight", "weight_scales"),
    "AQLM": ("codes", "codebooks", "scales"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_format_that_only_the_tensors_show_is_named(llama: Path, name: str) -> None:
    stored = load_file(llama / WEIGHTS)
    del stored[f"{PROJECTION}.weight"]
    parts = {f"{PROJECTION}.{end}": torch.ones(4, 4, dtype=torch.int32) for end in TENSORS[name]}
    save_file(stored | parts, llama / WEIGHTS)
    with pytest.raises(LlmcliError, match=f"cannot open weights quantized by {name} "):
        load(llama, device=CPU)


# 8-bit floats


def in_8_bits(case: Tiny, folder: Path, scales: dict[str, Tensor], others: dict[str, Tensor]) -> Tensor:
    """A folder in which one matrix is stored in 8 bits, with ``scales`` and ``others`` by the ends of their names.

    Returns the matrix as it should be read, without its scale.
    """
    shutil.copytree(case.folder, folder)
    stored = load_file(folder / WEIGHTS)
    small = stored[f"{PROJECTION}.weight"].to(torch.float8_e4m3fn)
    more = {PROJECTION + end: tensor for end, tensor in (scales | others).items()}
    save_file(stored | more | {f"{PROJECTION}.weight": small}, folder / WEIGHTS)
    return small.float()


@pytest.mark.parametrize(
    ("settings", "scale", "others"),
    [
        ({"quant_method": "fp8", "activation_scheme": "static"}, ".weight_scale_inv", (".activation_scale",)),
        ({"quant_method": "fp8"}, ".weight_scale", (".input_scale", ".output_scale", ".act_scale")),
        ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, ".weight_scale", (".input_scale_ub",)),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, ".weight_scale", (".input_scale", ".k_scale")),
        (compressed("float", 8, "float-quantized"), ".weight_scale", (".output_scale",)),
        ({"quant_method": "compressed-tensors"}, ".weight_scale", ()),
    ],
)
@pytest.mark.parametrize("shape", [(), (1,), (96, 1), (96,)])
def test_8_bit_floats_open(
    tiny: TinyFactory,
    tmp_path: Path,
    settings: dict[str, Any],
    scale: str,
    others: tuple[str, ...],
    shape: tuple[int, ...],
) -> None:
    case = tiny("llama")
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.5
    folder = tmp_path / "model"
    plain = in_8_bits(case, folder, {scale: values}, {end: torch.tensor(9.0) for end in others})
    set_config(folder, quantization_config=settings)
    notes = LoadNotes()
    model = load(folder, device=CPU, dtype=torch.float32, notes=notes)
    assert torch.equal(model.blocks[1].attn.qkv.weight[:96], plain * (values.view(-1, 1) if shape else values))
    assert notes.unused == ()


@pytest.mark.parametrize("block", [[32, 16], [1, 48], [7, 5], [96, 1]])
@pytest.mark.parametrize("method", ["fp8", "compressed-tensors"])
def test_the_blocks_of_a_scale_are_those_of_the_config(
    tiny: TinyFactory, tmp_path: Path, block: list[int], method: str
) -> None:
    rows, columns = 96, 48
    scales = torch.rand(-(-rows // block[0]), -(-columns // block[1]), generator=torch.Generator().manual_seed(0))
    folder = tmp_path / "model"
    plain = in_8_bits(tiny("llama"), folder, {".weight_scale_inv": scales}, {})
    settings: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": block}
    if method != "fp8":
        settings = compressed("float", 8, "float-quantized")
        how = {"strategy": "group", "group_size": block[1]} if block[0] == 1 else {"block_structure": block}
        how = {"block_structure": "7x5"} if block == [7, 5] else how
        settings["config_groups"]["group_0"]["weights"] |= how
    set_config(folder, quantization_config=settings)
    read = load(folder, device=CPU, dtype=torch.float32).blocks[1].attn.qkv.weight[:rows]
    spread = torch.stack(
        [torch.stack([scales[i // block[0], j // block[1]] for j in range(columns)]) for i in range(rows)]
    )
    assert torch.equal(read, plain * spread)


@pytest.mark.parametrize("block", [[128], [0, 128], "128", [128, 128.0], {}])
def test_a_wrong_block_size_is_named(block: object) -> None:
    with pytest.raises(LlmcliError, match="weight_block_size is"):
        scale_block({"quant_method": "fp8", "weight_block_size": block}, {})


def test_a_scale_of_a_matrix_that_is_not_in_8_bits_is_rejected(llama: Path) -> None:
    stored = load_file(llama / WEIGHTS)
    name = f"{PROJECTION}.weight"
    for weight, dtype in ((stored[name], "F32"), (stored[name].to(torch.int8), "I8")):
        save_file(stored | {name: weight, f"{name}_scale": torch.ones(1)}, llama / WEIGHTS)
        with pytest.raises(LlmcliError, match=f"tensor {name} is stored as {dtype} with a scale"):
            load(llama, device=CPU)
