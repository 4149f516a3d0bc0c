"""Weight files: mapping and reading give the same tensors, 8-bit floats are scaled, and no file is changed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from llmcli.errors import LlmcliError
from llmcli.files.names import WEIGHTS
from llmcli.files.safetensors import TensorFile
from llmcli.model.transformer import Transformer
from llmcli.storage.checkpoint import save
from tests.tiny import CPU, TinyFactory, load, random_ids

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def write_file(path: Path, tensors: dict[str, Tensor], *, shift: int = 0) -> TensorFile:
    """Write the tensors in the given order, with their data ``shift`` bytes after a multiple of 8."""
    header, data = {}, b""
    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
    for name, tensor in tensors.items():
        content = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode()
    text += b" " * ((shift - len(text)) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return TensorFile(path)


def is_mapped(tensor: Tensor, path: Path) -> bool:
    """Whether a tensor is part of the file's mapping: then its storage is as large as the file."""
    return tensor.untyped_storage().nbytes() == path.stat().st_size


# A single file.


@pytest.mark.parametrize("dtype", DTYPES)
def test_mapping_and_reading_give_the_same_tensor(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"b": noise(3, 5, dtype=dtype), "a": noise(7, dtype=dtype, seed=1), "c": noise(2, 2, 2, dtype=dtype)}
    file = write_file(tmp_path / "x", tensors)
    assert file.entries.keys() == tensors.keys()
    for name, tensor in tensors.items():
        mapped, read = file.mapped([file.entries[name]]), file.read(file.entries[name])
        assert mapped is not None
        assert mapped.dtype == read.dtype == dtype
        assert torch.equal(mapped, tensor)
        assert torch.equal(read, tensor)
        assert is_mapped(mapped, file.path)
        assert not is_mapped(read, file.path)


@pytest.mark.parametrize("dtype", DTYPES)
def test_adjacent_tensors_are_mapped_as_one(tmp_path: Path, dtype: torch.dtype) -> None:
    q, k, v = (noise(rows, 4, dtype=dtype, seed=rows) for rows in (6, 2, 3))
    file = write_file(tmp_path / "x", {"other": noise(5, dtype=dtype), "q": q, "k": k, "v": v})
    mapped = file.mapped([file.entries[name] for name in "qkv"])
    assert mapped is not None
    assert torch.equal(mapped, torch.cat((q, k, v)))
    assert is_mapped(mapped, file.path)


@pytest.mark.parametrize("order", ["qk v", "kq", "vq", "qv"])
def test_tensors_that_are_not_adjacent_in_order_are_not_mapped(tmp_path: Path, order: str) -> None:
    tensors = {"q": noise(6, 4), "k": noise(2, 4), " ": noise(1, 4), "v": noise(3, 4)}
    file = write_file(tmp_path / "x", tensors)
    requested = [file.entries[name] for name in order.replace(" ", "")]
    assert file.mapped(requested) is None


def test_tensors_of_two_dtypes_are_not_mapped_as_one(tmp_path: Path) -> None:
    file = write_file(tmp_path / "x", {"q": noise(6, 4), "k": noise(2, 4, dtype=torch.bfloat16)})
    assert file.mapped([file.entries["q"], file.entries["k"]]) is None


@pytest.mark.parametrize(("dtype", "shift", "aligned"), [
    (torch.float32, 0, True), (torch.float32, 4, True), (torch.float32, 2, False), (torch.float32, 1, False),
    (torch.bfloat16, 2, True), (torch.bfloat16, 1, False), (torch.float16, 3, False),
])  # fmt: skip
def test_unaligned_tensors_are_read_instead_of_mapped(
    tmp_path: Path, dtype: torch.dtype, shift: int, aligned: bool
) -> None:
    tensor = noise(3, 4, dtype=dtype)
    file = write_file(tmp_path / "x", {"q": tensor}, shift=shift)
    mapped = file.mapped([file.entries["q"]])
    assert (mapped is not None) == aligned
    assert torch.equal(tensor if mapped is None else mapped, tensor)
    assert torch.equal(file.read(file.entries["q"]), tensor)


def test_a_file_truncated_after_opening_is_an_error(tmp_path: Path) -> None:
    file = write_file(tmp_path / "x", {"q": noise(30, 4)})
    file.path.write_bytes(file.path.read_bytes()[:-100])
    with pytest.raises(LlmcliError, match="unexpected end of file"):
        file.read(file.entries["q"])


# The file of a model.


def reorder(folder: Path, order: Callable[[str], Any], *, shift: int = 0) -> Path:
    """Rewrite a folder's weights with the tensors sorted by ``order``."""
    stored = load_file(folder / WEIGHTS)
    write_file(folder / WEIGHTS, {name: stored[name] for name in sorted(stored, key=order)}, shift=shift)
    return folder


def assert_same_model(a: Transformer, b: Transformer) -> None:
    for (name, left), (_, right) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert torch.equal(left, right), name


def in_layer_order(name: str) -> tuple[Any, ...]:
    """A sort key that makes q, k and v adjacent, and gate and up."""
    parts = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return (name.split(".")[:3], next((i for i, part in enumerate(parts) if part in name), 9), name)


@pytest.mark.parametrize("shift", [0, 1])
def test_mapping_and_reading_give_the_same_model(tiny: TinyFactory, tmp_path: Path, shift: int) -> None:
    case = tiny("llama")
    folder = reorder(Path(shutil.copytree(case.folder, tmp_path / "copy")), in_layer_order, shift=shift)
    model = load(folder, device=CPU)
    mapped = {name: is_mapped(parameter, folder / WEIGHTS) for name, parameter in model.named_parameters()}
    assert set(mapped.values()) == {shift == 0}, mapped
    assert_same_model(model, case.load())


def test_only_adjacent_sources_are_mapped(tiny: TinyFactory) -> None:
    """transformers writes in alphabetical order: gate and up are adjacent, but q, k and v are not (k, o, q, v)."""
    case = tiny("llama")
    model = case.load()
    assert is_mapped(model.embedding.weight, case.folder / WEIGHTS)
    assert is_mapped(model.blocks[0].mlp.up.weight, case.folder / WEIGHTS)
    assert not is_mapped(model.blocks[0].attn.qkv.weight, case.folder / WEIGHTS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_another_dtype_are_read(tiny: TinyFactory, dtype: torch.dtype) -> None:
    case = tiny("llama")
    model = load(case.folder, device=CPU, dtype=dtype)
    for parameter, right in zip(model.parameters(), case.load().parameters(), strict=True):
        assert not is_mapped(parameter, case.folder / WEIGHTS)
        assert torch.equal(parameter, right.to(dtype))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_changing_weights_in_memory_changes_neither_the_file_nor_other_models(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    before = (case.folder / WEIGHTS).read_bytes()
    model, other = case.load(), case.load()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert (case.folder / WEIGHTS).read_bytes() == before
    assert_same_model(other, case.load())
    assert not torch.equal(model.embedding.weight, other.embedding.weight)


def test_saving_a_model_over_its_own_mapped_file_keeps_its_weights(tiny: TinyFactory, tmp_path: Path) -> None:
    case = tiny("llama")
    folder = Path(shutil.copytree(case.folder, tmp_path / "copy"))
    model = load(folder, device=CPU)
    save(model, folder, json.loads((folder / "config.json").read_text()), dtype=torch.bfloat16)
    assert_same_model(model, case.load())


# 8-bit floats.

FP8 = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
HIDDEN, WIDE, VOCAB = 160, 300, 50
CONFIG = LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=HIDDEN,
    intermediate_size=WIDE,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=80,
    max_position_embeddings=64,
)
BLOCKS, ROWS, FLAT_ROWS, ONE, FLAT_ONE, NONE = "blocks", "rows", "flat rows", "one", "flat one", "none"


def quantized(weight: Tensor, layout: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor]:
    """A matrix in 8 bits, its scale, and in float64 the values that the two represent."""
    exact = weight.double()
    rows, columns = weight.shape
    if layout == BLOCKS:
        scale = torch.zeros(math.ceil(rows / 128), math.ceil(columns / 128))
        spread = torch.zeros(rows, columns, dtype=torch.float64)
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                block = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
                scale[i, j] = exact[block].abs().max() / FP8[dtype]
                spread[block] = float(scale[i, j])
    elif layout in (ROWS, FLAT_ROWS):
        scale = (exact.abs().amax(1, keepdim=True) / FP8[dtype]).float()
        spread = scale.double().expand(rows, columns)
        scale = scale.flatten() if layout == FLAT_ROWS else scale
    else:
        size = 1.0 if layout == NONE else float(exact.abs().max() / FP8[dtype])
        scale = torch.full((1,) if layout == ONE else (), size)
        spread = scale.double().expand(rows, columns)
    small = (exact / spread).to(torch.float32).to(dtype)
    return small, None if layout == NONE else scale, small.double() * spread


def write_fp8_folder(folder: Path, layout: str, dtype: torch.dtype, suffix: str) -> dict[str, Tensor]:
    """Write a Llama whose layers have 8-bit matrices; return the values of its tensors in float64."""
    stored: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(CONFIG).state_dict().items()}
    for seed, (name, shape) in enumerate(shapes.items()):
        weight = noise(*shape, seed=seed)
        if "_proj" in name:
            stored[name], scale, values[name] = quantized(weight, layout, dtype)
            if scale is not None:
                stored[name + suffix] = scale
            stored[name.removesuffix("weight") + "input_scale"] = torch.tensor(7.0)  # of activations: not used
            stored[name.rsplit(".", 2)[0] + ".k_scale"] = torch.tensor(5.0)  # of the cache: not used
        else:
            stored[name] = weight.to(torch.bfloat16)
            values[name] = stored[name].double()
    save_file(stored, folder / WEIGHTS)
    raw = CONFIG.to_dict() | ({} if layout == NONE else {"quantization_config": {"quant_method": "fp8"}})
    (folder / "config.json").write_text(json.dumps(raw))
    return values


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize(
    ("layout", "suffix"),
    [
        (NONE, ""),
        (ONE, "_scale"),
        (FLAT_ONE, "_scale"),
        (ROWS, "_scale"),
        (FLAT_ROWS, "_scale"),
        (BLOCKS, "_scale_inv"),
    ],
)
def test_8_bit_weights_are_multiplied_by_their_scales(
    tmp_path: Path, layout: str, suffix: str, dtype: torch.dtype
) -> None:
    values = write_fp8_folder(tmp_path, layout, dtype, suffix)
    layer = "model.layers.0."
    q, k, v = (values[f"{layer}self_attn.{name}_proj.weight"] for name in "qkv")
    gate, up = (values[f"{layer}mlp.{name}_proj.weight"] for name in ("gate", "up"))
    model = load(tmp_path, device=CPU, dtype=torch.float32)
    block = model.blocks[0]
    for ours, exact in [
        (block.attn.qkv.weight, torch.cat((q, k, v))),
        (block.attn.out.weight, values[f"{layer}self_attn.o_proj.weight"]),
        (block.mlp.up.weight, torch.cat((gate, up))),
        (block.mlp.down.weight, values[f"{layer}mlp.down_proj.weight"]),
        (model.embedding.weight, values["model.embed_tokens.weight"]),
    ]:
        torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=0.0)
    usual = load(tmp_path, device=CPU)
    assert {parameter.dtype for parameter in usual.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(usual.blocks[0].mlp.down.weight.double(), block.mlp.down.weight.double(), rtol=2**-8,
                               atol=0.0)  # fmt: skip


def test_a_missing_scale_is_an_error(tmp_path: Path) -> None:
    write_fp8_folder(tmp_path, ONE, torch.float8_e4m3fn, "_scale")
    lost = "model.layers.0.mlp.up_proj.weight"
    stored = load_file(tmp_path / WEIGHTS)
    del stored[lost + "_scale"]
    save_file(stored, tmp_path / WEIGHTS)
    with pytest.raises(LlmcliError, match=f"{lost}.*without its scale"):
        load(tmp_path, device=CPU)


def test_blocks_at_the_edges_are_smaller() -> None:
    """The sizes are not multiples of 128, so that the tests cover partial blocks."""
    assert HIDDEN % 128
    assert WIDE % 128
    assert min(HIDDEN, WIDE) > 128


def test_a_scale_of_an_unsupported_shape_is_named(tmp_path: Path) -> None:
    write_fp8_folder(tmp_path, BLOCKS, torch.float8_e4m3fn, "_scale_inv")
    stored = load_file(tmp_path / WEIGHTS)
    name = "model.layers.0.mlp.down_proj.weight_scale_inv"
    save_file(stored | {name: torch.ones(3, 5)}, tmp_path / WEIGHTS)
    with pytest.raises(LlmcliError, match=r"down_proj\.weight_scale_inv has shape \[3, 5\].*\[160, 300\]"):
        load(tmp_path, device=CPU)


def test_all_missing_and_unexpected_tensors_are_named_together_with_scales_ignored(tmp_path: Path) -> None:
    write_fp8_folder(tmp_path, ONE, torch.float8_e4m3fn, "_scale")
    stored = load_file(tmp_path / WEIGHTS)
    lost = ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"]
    for name in lost:
        del stored[name]
    save_file(stored | {"model.x": torch.ones(1), "model.layers.1.y": torch.ones(1)}, tmp_path / WEIGHTS)
    with pytest.raises(LlmcliError) as caught:
        load(tmp_path, device=CPU)
    missing, unexpected = caught.value.message.split("; unexpected: ")
    assert all(name in missing for name in lost)
    assert unexpected == "model.layers.1.y, model.x"


def test_logits_of_an_8_bit_model_are_those_of_its_float32_values(tmp_path: Path) -> None:
    """A whole pass shows that nothing is scaled twice or not at all."""
    values = write_fp8_folder(tmp_path, BLOCKS, torch.float8_e4m3fn, "_scale_inv")
    reference = LlamaForCausalLM(CONFIG).eval()
    reference.load_state_dict({name: value.float() for name, value in values.items()})
    ids = random_ids(20, seed=0) % VOCAB
    with torch.no_grad():
        ours, theirs = load(tmp_path, device=CPU, dtype=torch.float32)(ids), reference(ids).logits
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
