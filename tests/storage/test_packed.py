"""Quantized checkpoints of other programs, unpacked as their specifications say, bit by bit."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from llmcli.engine.tensor_parallel.transformer import load_split
from llmcli.errors import LlmcliError
from llmcli.files.names import CONFIG, WEIGHTS
from llmcli.storage.checkpoint import Checkpoint, save
from llmcli.storage.finite import LoadNotes
from llmcli.storage.foreign_formats import without_settings
from llmcli.storage.ggml import restore
from llmcli.storage.headers import read_headers
from llmcli.storage.partition import Partition, read_slice
from llmcli.storage.quantize import QuantizedMatrix, quantize
from llmcli.storage.quantized_checkpoint import copy_rest, save_quantized
from tests.packers import CASES, Case, Draw, Packed, affine, compressed, gptq, gptq_case, pack_quantized
from tests.tiny import CPU, TinyFactory, load

LAYERS, HIDDEN, WIDE, VOCAB = 2, 64, 96, 64
LLAMA = {
    "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": WIDE,
    "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "float16",
}  # fmt: skip
LINEAR = {
    "self_attn.q_proj": (64, HIDDEN), "self_attn.k_proj": (32, HIDDEN), "self_attn.v_proj": (32, HIDDEN),
    "self_attn.o_proj": (HIDDEN, 64), "mlp.gate_proj": (WIDE, HIDDEN), "mlp.up_proj": (WIDE, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDE),
}  # fmt: skip
MODULES = {f"model.layers.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in LINEAR.items()}
FIRST = "model.layers.0.self_attn.q_proj"
IDS = torch.arange(40)[None] * 7 % VOCAB


@dataclass(frozen=True)
class Folder:
    """A model folder with packed matrices, and the exact weights of the model by name, in float64."""

    path: Path
    exact: dict[str, Tensor]


def write(path: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / WEIGHTS)
    (path / CONFIG).write_text(json.dumps(LLAMA | config))
    return path


def plain_tensors() -> dict[str, Tensor]:
    """What is not packed."""
    generator = torch.Generator().manual_seed(0)
    plain = {
        "model.embed_tokens.weight": torch.randn(VOCAB, HIDDEN, generator=generator),
        "lm_head.weight": torch.randn(VOCAB, HIDDEN, generator=generator) / 4,
        "model.norm.weight": 1 + torch.randn(HIDDEN, generator=generator) / 4,
    }
    for layer in range(LAYERS):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            plain[f"model.layers.{layer}.{norm}.weight"] = 1 + torch.randn(HIDDEN, generator=generator) / 4
    return {name: tensor.half() for name, tensor in plain.items()}


def make(path: Path, case: Case, change: Callable[[dict[str, Tensor]], None] = lambda stored: None) -> Folder:
    """A folder as a program writes it, with a ``change`` to its tensors."""
    generator = torch.Generator().manual_seed(1)
    stored, exact = plain_tensors(), {name: tensor.double() for name, tensor in plain_tensors().items()}
    for module, shape in MODULES.items():
        tensors, values = case.pack(Draw(*shape, generator))
        stored |= {f"{module}.{end}": tensor for end, tensor in tensors.items()}
        exact[f"{module}.weight"] = values
    change(stored)
    key = "quantization" if "mode" in case.settings else "quantization_config"
    return Folder(write(path, stored, **{key: case.settings}), exact)


def source_rows(folder: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The loaded weights by the names of the stored matrices."""
    checkpoint = Checkpoint.read(folder)
    parameters = dict(load(folder, device=CPU, dtype=dtype, restored=True).named_parameters())
    rows = {}
    for rule in checkpoint.family.rules(checkpoint.config):
        pieces = torch.split(parameters[rule.target], [source.rows for source in rule.sources])
        rows |= {source.name: piece for source, piece in zip(rule.sources, pieces, strict=True)}
    return rows


@pytest.mark.parametrize("name", CASES)
def test_weights_are_unpacked_exactly(tmp_path: Path, name: str) -> None:
    """In float32 to the nearest number of the specification; the logits are those of a model with these weights."""
    case = CASES[name]
    folder = make(tmp_path / "packed", case)
    rows = source_rows(folder.path, torch.float32)
    assert rows.keys() == folder.exact.keys()
    for source, exact in folder.exact.items():
        assert torch.equal(rows[source], exact.float()), source
        assert rows[source].count_nonzero() > rows[source].numel() / 2
    notes = LoadNotes()
    model = load(folder.path, device=CPU, dtype=torch.float32, notes=notes, restored=True)
    assert (notes.restored, notes.unused) == ((case.format,), ())
    assert notes.quantizes_activations == case.quantizes_activations
    exact = {source: tensor.float() for source, tensor in folder.exact.items()}
    unpacked = load(write(tmp_path / "unpacked", exact), device=CPU, dtype=torch.float32)
    with torch.no_grad():
        logits = model(IDS)
        assert torch.equal(logits, unpacked(IDS))
    assert logits.std() > 0.1
    # Without a dtype, the weights have that of config.json.
    for source, tensor in source_rows(folder.path, None).items():
        assert torch.equal(tensor, folder.exact[source].float().half()), source
    headers = read_headers(Checkpoint.read(folder.path))
    assert headers.dtype == torch.float16
    assert headers.parameters == sum(tensor.numel() for tensor in exact.values())
    sizes = sum(entry.end - entry.start for entry in headers.stored)
    assert sizes == sum(tensor.nbytes for tensor in load_file(folder.path / WEIGHTS).values())
    assert sum(entry.dtype == case.format for entry in headers.stored) == len(MODULES)


def changed(end: str, change: Callable[[Tensor], Tensor | None]) -> Callable[[dict[str, Tensor]], None]:
    """Change a tensor of the first matrix; None removes it."""

    def apply(stored: dict[str, Tensor]) -> None:
        new = change(stored.pop(f"{FIRST}.{end}"))
        if new is not None:
            stored[f"{FIRST}.{end}"] = new

    return apply


def nan(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[3] = torch.nan
    return tensor


def state(**changes: Any) -> Callable[[Tensor], Tensor]:
    """Change the description of a matrix by bitsandbytes."""

    def change(tensor: Tensor) -> Tensor:
        raw = json.loads(bytes(tensor.tolist())) | changes
        return torch.tensor(list(json.dumps(raw).encode())).to(torch.uint8)

    return change


STATE = "weight.quant_state.bitsandbytes__nf4"
DAMAGE: list[tuple[str, str, Callable[[Tensor], Tensor | None], str]] = [
    ("gptq-4", "scales", lambda t: t[:-1].clone(), r"q_proj.scales has shape \[3, 64\], but .* imply \[4, 64\]"),
    ("gptq-4", "scales", nan, r"q_proj.scales contains NaN or infinity \(1 of 256 values\)"),
    ("gptq-4", "scales", lambda t: t.int(), "q_proj.scales is stored as I32 instead of F64"),
    ("gptq-4", "scales", lambda t: None, "q_proj.scales is missing, which .*q_proj.qweight needs"),
    ("gptq-4", "g_idx", lambda t: None, "q_proj.g_idx is missing, which desc_act requires"),
    ("gptq-4", "g_idx", lambda t: t + 1, r"q_proj.g_idx has 4, but the groups are numbered 0 to 3"),
    ("gptq-4", "g_idx", lambda t: t - 2**31, r"q_proj.g_idx has -21474836\d\d, but the groups"),
    ("gptq-4", "g_idx", lambda t: t[1:].clone(), r"q_proj.g_idx has shape \[63\], but .* imply \[64\]"),
    ("gptq-4", "qweight", lambda t: t[0].clone(), r"q_proj.qweight has shape \[64\], but must be a matrix"),
    ("gptq-4", "qweight", lambda t: t[:0].clone(), r"q_proj.qweight has shape \[0, 64\], but must be a matrix"),
    ("gptq-4", "qzeros", lambda t: t[:, :5].clone(), r"q_proj.qzeros has shape \[4, 5\], which does not fit 64 rows"),
    ("gptq-4", "qzeros", lambda t: t[:, :4].clone(), "q_proj.qzeros has 2 bits per number, but config.json states 4"),
    ("awq", "qzeros", lambda t: t[:, 1:].clone(), r"q_proj.qzeros has shape \[4, 7\], but .* imply \[4, 8\]"),
    ("awq", "scales", lambda t: t[:3].clone(), r"q_proj.qzeros has shape \[4, 8\], but .* imply \[3, 8\]"),
    ("compressed-int4", "weight_shape", lambda t: t * 10**12, "q_proj.weight_packed has shape .* does not fit"),
    ("compressed-int4", "weight_shape", lambda t: -t, "q_proj.weight_packed has shape .* does not fit"),
    ("compressed-int4", "weight_scale", lambda t: t[:, :3].clone(), "has 3 groups, which do not divide 64 columns"),
    ("compressed-int4-zeros-order", "weight_zero_point", lambda t: None, "q_proj.weight_zero_point is missing"),
    ("compressed-int8", "weight_scale", lambda t: None, "q_proj.weight is stored in 8 bits without its scale"),
    ("compressed-mxfp4", "weight_scale", lambda t: t | 255, r"q_proj.weight_scale contains NaN or infinity \(128 of"),
    ("compressed-nvfp4", "weight_global_scale", lambda t: t.expand(2).clone(), "but must be a single number"),
    ("compressed-nvfp4", "weight_global_scale", lambda t: t * 0, r"self_attn.q_proj.weight, .* are too large"),
    ("nf4", "weight.absmax", lambda t: t[1:].clone(), r"absmax has shape \[63\], but .* imply \[64\]"),
    ("nf4", "weight.absmax", nan, "absmax contains NaN"),
    ("nf4", "weight.quant_map", lambda t: t[1:].clone(), r"quant_map has shape \[15\], but"),
    ("nf4", STATE, lambda t: t[1:].clone(), "nf4 is not a valid description: JSONDecodeError"),
    ("nf4", STATE, lambda t: torch.full((2**17,), 91, dtype=torch.uint8), "but must be a short text"),
    ("nf4", STATE, state(blocksize=0), "0 is not a whole number from 1"),
    ("nf4", STATE, state(shape=[64, 10**30]), "is not a whole number from 1"),
    ("nf4", STATE, state(shape=[64, 65]), "q_proj.weight has 2048 bytes, but 4160 weights in 4 bits are stated"),
    ("nf4", STATE, state(shape=[32, 128]), r"q_proj.weight has shape \[32, 128\], but config.json implies \[64, 64\]"),
    ("nf4-nested", STATE, state(nested_offset=1e999), "nested_offset is not finite"),
    ("int8", "SCB", lambda t: t[1:].clone(), r"q_proj.SCB has shape \[63\], but"),
    ("int8", "weight_format", lambda t: t + 1, "q_proj.weight is not stored by rows"),
    (
        "mxfp4",
        "weight_blocks",
        lambda t: t.view(64, 4, 8),
        r"has shape \[64, 4, 8\], which is not made of groups of 32",
    ),
    (
        "mxfp4",
        "weight_scales",
        lambda t: t[:, :1].clone(),
        r"weight_scales has shape \[64, 1\], but .* imply \[64, 2\]",
    ),
    ("mlx-4", "biases", lambda t: None, "q_proj.biases is missing, which .*q_proj.weight needs"),
    ("mlx-4", "scales", lambda t: t[:, :1].clone(), r"q_proj.scales has shape \[64, 1\], but .* imply \[64, 2\]"),
    ("mlx-6", "weight", lambda t: t[:, :11].clone(), "not made of groups of 32 numbers with 6 bits"),
]


@pytest.mark.parametrize(("name", "end", "change", "message"), DAMAGE)
def test_damage_is_named(
    tmp_path: Path, name: str, end: str, change: Callable[[Tensor], Tensor | None], message: str
) -> None:
    folder = make(tmp_path, CASES[name], changed(end, change))
    with pytest.raises(LlmcliError, match=message) as caught:
        load(folder.path, device=CPU)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gptq-4", {"group_size": 0}, "group_size is 0, not a whole number above 0, or -1"),
        ("gptq-4", {"group_size": "16"}, "group_size is '16', not a"),
        ("gptq-4", {"group_size": 48}, "has 4 groups, but groups of 48 of 64 columns are stated"),
        ("gptq-4", {"bits": 8}, "has 4 bits per number, but config.json states 8"),
        ("mlx-4", {"group_size": 2**40}, "bits 4 and group_size 1099511627776, which is not supported"),
        ("mlx-4", {FIRST: {"bits": 7}}, "with mode 'affine', bits 7 and group_size 32"),
        ("mlx-4", {"bits": 8}, r"q_proj.scales has shape \[64, 2\], but .* imply \[64, 1\]"),
        (
            "fp8-blocks",
            {"weight_block_size": [16, 16]},
            r"has shape \[2, 2\], which cannot scale a tensor of \[64, 64\]",
        ),
    ],
)
def test_settings_that_contradict_the_tensors_are_named(
    tmp_path: Path, name: str, settings: dict[str, Any], message: str
) -> None:
    case = CASES[name]
    folder = make(tmp_path, Case(case.pack, case.settings | settings, case.format))
    with pytest.raises(LlmcliError, match=message):
        load(folder.path, device=CPU)


# Variants of a format that differ in the settings, the names or the dtypes alone.


def test_groups_without_an_index_are_adjacent_columns(tmp_path: Path) -> None:
    """Old programs put settings into quantize_config.json, and give the weights a name of their own."""
    case = Case(CASES["gptq-4-v2"].pack, CASES["gptq-8"].settings, "")

    def without_index(stored: dict[str, Tensor]) -> None:
        for module in MODULES:
            del stored[f"{module}.g_idx"]

    folder = make(tmp_path, case, without_index)
    config = json.loads((tmp_path / CONFIG).read_text())
    del config["quantization_config"]
    (tmp_path / CONFIG).write_text(json.dumps(config))
    beside = {"bits": 4, "group_size": 24, "desc_act": False, "checkpoint_format": "gptq_v2"}
    (tmp_path / "quantize_config.json").write_text(json.dumps(beside))
    (tmp_path / WEIGHTS).rename(tmp_path / "gptq_model-4bit-24g.safetensors")
    rows = source_rows(folder.path, torch.float32)
    assert all(torch.equal(rows[source], exact.float()) for source, exact in folder.exact.items())


def test_tensors_alone_tell_their_format(tmp_path: Path) -> None:
    for name in ("gptq-3", "awq", "nf4", "int8", "mxfp4", "modelopt-nvfp4"):
        case = CASES[name]
        folder = make(tmp_path / name, case)
        write(folder.path, load_file(folder.path / WEIGHTS))
        rows = source_rows(folder.path, torch.float32)
        assert all(torch.equal(rows[source], exact.float()) for source, exact in folder.exact.items()), name


@pytest.mark.parametrize(
    ("name", "rename"),
    [
        ("nf4-nested", lambda name: re.sub(r"^(model|lm_head)", r"module._orig_mod.\1", name)),
        ("nf4", lambda name: name.removeprefix("model.")),
        ("gptq-4", lambda name: name.removeprefix("model.")),
        ("mxfp4", lambda name: re.sub(r"\.weight_(blocks|scales)$", r"_\1", name)),  # as in gpt-oss
        ("mlx-4", lambda name: f"language_model.{name}"),
    ],
)
def test_names_may_have_other_prefixes(tmp_path: Path, name: str, rename: Callable[[str], str]) -> None:
    def renamed(stored: dict[str, Tensor]) -> None:
        new = {rename(old): tensor for old, tensor in stored.items()}
        stored.clear()
        stored.update(new)

    folder = make(tmp_path, CASES[name], renamed)
    assert f"{FIRST}.weight" not in load_file(folder.path / WEIGHTS)
    rows = source_rows(folder.path, torch.float32)
    assert all(torch.equal(rows[source], exact.float()) for source, exact in folder.exact.items())


def test_matrices_may_have_settings_of_their_own(tmp_path: Path) -> None:
    """MLX's by module, an embedding among them; compressed-tensors' by targets; GPTQModel's by shapes."""
    few, many = affine, partial(affine, bits=8, group=16)
    settings = {"group_size": 32, "bits": 4, "lm_head": False}
    own = {"group_size": 16, "bits": 8}
    wide = {name: own for name in MODULES if "down_proj" in name or "o_proj" in name}
    write_mixed(tmp_path / "mlx", settings | wide, lambda name: few if name not in wide else many)

    weights = compressed("int", 4, "pack-quantized")["config_groups"]["group_0"]["weights"]
    groups = {
        "group_0": {"targets": ["Linear"], "weights": weights},
        "group_1": {"targets": [r"re:.*\.down_proj", FIRST], "weights": weights | {"num_bits": 8}},
    }
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    bits = {name: 8 if "down_proj" in name or name == FIRST else 4 for name in MODULES}
    write_mixed(tmp_path / "compressed", settings, lambda name: partial(pack_quantized, bits=bits[name]))

    settings = {"quant_method": "gptq", "bits": 4, "group_size": 16, "dynamic": {r"+:.*down": {"bits": 8}}}
    write_mixed(tmp_path / "gptq", settings, lambda name: partial(gptq, bits=bits[name], group=bits[name] * 4))


def write_mixed(path: Path, settings: dict[str, Any], packer: Callable[[str], Callable[[Draw], Packed]]) -> None:
    """Write a folder, each matrix of which has its own packer, and check the weights that are read."""
    generator = torch.Generator().manual_seed(2)
    stored, exact = plain_tensors(), {name: tensor.double() for name, tensor in plain_tensors().items()}
    for module, shape in MODULES.items():
        tensors, exact[f"{module}.weight"] = packer(module)(Draw(*shape, generator))
        stored |= {f"{module}.{end}": tensor for end, tensor in tensors.items()}
    if "lm_head" in settings:
        tensors, exact["model.embed_tokens.weight"] = affine(Draw(VOCAB, HIDDEN, generator))
        del stored["model.embed_tokens.weight"]
        stored |= {f"model.embed_tokens.{end}": tensor for end, tensor in tensors.items()}
    write(path, stored, quantization_config=settings)
    rows = source_rows(path, torch.float32)
    assert all(torch.equal(rows[source], values.float()) for source, values in exact.items())


@pytest.mark.parametrize("name", ["gptq-4", "awq", "nf4", "int8", "fp8-blocks"])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_families_with_other_layouts(tiny: TinyFactory, tmp_path: Path, family: str, name: str) -> None:
    """GPT-2 stores matrices as [in, out], which programs transpose; GPT-NeoX stacks q, k and v by heads."""
    case, generator = tiny(family), torch.Generator().manual_seed(3)
    shutil.copytree(case.folder, tmp_path / "packed")
    stored = load_file(case.folder / WEIGHTS)
    exact = dict(stored)
    linear = [n for n in stored if n.endswith(".weight") and stored[n].ndim == 2 and re.search(r"h\.|layers\.", n)]
    for source in linear:
        by_output = family != "gpt2" or name == "fp8-blocks"  # of floats in 8 bits, no program changes the layout
        weight = stored.pop(source) if by_output else stored.pop(source).T
        group = {"group": 8} if name in ("gptq-4", "awq") else {}
        tensors, values = CASES[name].pack(Draw(*weight.shape, generator), **group)
        stored |= {f"{source.removesuffix('.weight')}.{end}": tensor for end, tensor in tensors.items()}
        exact[source] = (values if by_output else values.T).float().contiguous()
    assert len(linear) > 9
    save_file(stored, tmp_path / "packed" / WEIGHTS)
    config = json.loads((case.folder / CONFIG).read_text())
    settings = {**CASES[name].settings, "group_size": 8, "desc_act": False}
    (tmp_path / "packed" / CONFIG).write_text(json.dumps(config | {"quantization_config": settings}))
    shutil.copytree(case.folder, tmp_path / "exact")
    save_file(exact, tmp_path / "exact" / WEIGHTS)
    packed, unpacked = (
        load(tmp_path / part, device=CPU, dtype=torch.float32, restored=True) for part in ("packed", "exact")
    )
    pairs = zip(packed.parameters(), unpacked.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize(("family", "quantized"), [("mixtral", True), ("qwen3_moe", True), ("olmoe", False)])
def test_experts_that_mlx_stacks(tiny: TinyFactory, tmp_path: Path, family: str, quantized: bool) -> None:
    case, generator = tiny(family), torch.Generator().manual_seed(4)
    stored = load_file(case.folder / WEIGHTS)
    exact = dict(stored)
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    stacked: dict[str, list[Tensor]] = {}
    for source in sorted(stored, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]):
        match = re.fullmatch(r"(.*)\.experts\.\d+\.(\w+)\.weight", source)
        if match is None:
            continue
        tensors = {"weight": stored.pop(source)}
        if quantized:
            tensors, values = affine(Draw(*tensors["weight"].shape, generator), bits=8, group=8)
            exact[source] = values.float()
        for end, tensor in tensors.items():
            stacked.setdefault(f"{match[1]}.switch_mlp.{names.get(match[2], match[2])}.{end}", []).append(tensor)
    assert len(stacked) >= 3
    stored |= {name: torch.stack(tensors) for name, tensors in stacked.items()}
    config = json.loads((case.folder / CONFIG).read_text())
    own = {name.removesuffix(".weight"): {"bits": 8, "group_size": 8} for name in stacked if name.endswith(".weight")}
    settings = {"quantization": {"bits": 4, "group_size": 64, **own}} if quantized else {}
    for name, tensors in (("packed", stored), ("exact", exact)):
        shutil.copytree(case.folder, tmp_path / name)
        save_file(tensors, tmp_path / name / WEIGHTS)
        (tmp_path / name / CONFIG).write_text(json.dumps(config | (settings if name == "packed" else {})))
    packed, unpacked = (
        load(tmp_path / part, device=CPU, dtype=torch.float32, restored=True) for part in ("packed", "exact")
    )
    pairs = zip(packed.parameters(), unpacked.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    group: Any = SimpleNamespace(device=CPU, rank=1, size=2)
    split = [load_split(Checkpoint.read(tmp_path / part), group, dtype=torch.float32) for part in ("packed", "exact")]
    pairs = zip(*(model.parameters() for model in split), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_what_has_no_effect_is_not_reported(tmp_path: Path) -> None:
    """Scales of activations and of the KV cache, and biases of zeros, which GPTQ's programs write; others are."""
    extra = {
        "self_attn.k_scale": torch.ones(1), "self_attn.q_proj.input_scale": torch.ones(1),
        "self_attn.q_proj.input_zero_point": torch.ones(1), "mlp.up_proj.bias": torch.zeros(WIDE),
        "mlp.gate_proj.bias": torch.ones(WIDE),
    }  # fmt: skip
    change = lambda stored: stored.update({f"model.layers.0.{name}": tensor for name, tensor in extra.items()})  # noqa: E731
    notes = LoadNotes()
    load(make(tmp_path, CASES["gptq-4"], change).path, device=CPU, notes=notes)
    assert notes.unused == ("model.layers.0.mlp.gate_proj.bias",)


def test_8_bit_integers_need_settings(tmp_path: Path) -> None:
    """Nothing says what they are."""
    folder = make(tmp_path, CASES["compressed-int8"])
    write(folder.path, load_file(folder.path / WEIGHTS))
    with pytest.raises(LlmcliError, match="is stored as I8 with a scale"):
        load(folder.path, device=CPU)


# What commands do with such folders.


def test_a_copy_of_such_a_model_does_not_claim_its_format(tmp_path: Path) -> None:
    """Saved weights, quantized by llmcli or not, are read back as they are."""
    for name in ("gptq-4", "mlx-4"):
        folder = make(tmp_path / name, CASES[name]).path
        (folder / "quantize_config.json").write_text(json.dumps(CASES[name].settings))
        raw = Checkpoint.read(folder).raw
        model = load(folder, device=CPU, dtype=torch.float32, restored=True)
        with torch.no_grad():
            logits = model(IDS)
            save(model, tmp_path / f"{name}-plain", without_settings(raw), dtype=torch.float32)
            assert torch.equal(load(tmp_path / f"{name}-plain", device=CPU)(IDS), logits)
        out = tmp_path / f"{name}-int8"
        save_quantized(model, "int8", out, raw)
        copy_rest(folder, out)
        assert sorted(path.name for path in out.iterdir()) == [CONFIG, WEIGHTS]
        again = load(out, device=CPU, dtype=torch.float32)
        quantize(model, "int8")
        with torch.no_grad():
            assert torch.equal(again(IDS), model(IDS))


def test_an_adapter_merges_into_the_unpacked_weights(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", CASES["awq"])
    generator = torch.Generator().manual_seed(5)
    a, b = torch.randn(2, HIDDEN, generator=generator), torch.randn(64, 2, generator=generator)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    names = {f"base_model.model.{FIRST}.lora_A.weight": a, f"base_model.model.{FIRST}.lora_B.weight": b}
    save_file(names, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    model = load(folder.path, device=CPU, dtype=torch.float32, adapter=adapter)
    expected = folder.exact[f"{FIRST}.weight"] + 2 * (b.double() @ a.double())
    assert torch.allclose(model.blocks[0].attn.qkv.weight[:64].double(), expected, atol=1e-6)


def test_ranks_read_their_part(tmp_path: Path) -> None:
    folder = make(tmp_path, CASES["gptq-4"]).path
    opened = Checkpoint.read(folder).open()
    whole = dict(load(folder, device=CPU, dtype=torch.float32).named_parameters())
    partition = Partition(opened.config, 1, 2)
    for rule in opened.rules:
        if rule.target in ("blocks.0.attn.qkv.weight", "blocks.1.mlp.down.weight"):
            part = read_slice(opened.weights, rule, partition, opened.shapes[rule.target], torch.float32)
            full = whole[rule.target]
            if "down" in rule.target:
                assert torch.equal(part, full[:, WIDE // 2 :])
            else:
                assert torch.equal(part, torch.cat([full[32:64], full[80:96], full[112:128]]))


# Blocks of GGUF.
BLOCKS: list[tuple[str, Case, str]] = [
    ("GPTQ, 4 bits", gptq_case(bits=4, group=32, sym=True), "Q4_0"),
    ("GPTQ, 8 bits", gptq_case(bits=8, group=32, sym=True), "Q8_0"),
    ("GPTQ, all columns", gptq_case(bits=4, group=-1, sym=True, desc_act=False), "Q4_0"),
    ("GPTQ, act-order", gptq_case(bits=4, group=32, sym=True, desc_act=True), ""),
    ("GPTQ, zero points", gptq_case(bits=4, group=32), ""),
    ("GPTQ, groups of 16", gptq_case(bits=4, group=16, sym=True), ""),
    ("GPTQ, 3 bits", gptq_case(bits=3, group=32, sym=True), ""),
    ("compressed-tensors", Case(partial(pack_quantized, group=32), CASES["compressed-int4"].settings, ""), "Q4_0"),
    ("compressed-tensors, packed int8", CASES["compressed-int8-packed"], "Q8_0"),
    ("compressed-tensors, int8", CASES["compressed-int8"], "Q8_0"),
    ("compressed-tensors, zero points", CASES["compressed-int8-zeros"], ""),
    ("compressed-tensors, MXFP4", CASES["compressed-mxfp4"], "MXFP4"),
    ("MXFP4", CASES["mxfp4"], "MXFP4"),
    ("MLX, MXFP4", CASES["mlx-mxfp4"], "MXFP4"),
    ("MLX, 4 bits", CASES["mlx-4"], "Q4_1"),
    ("MLX, 8 bits", CASES["mlx-8"], ""),
    ("NF4", CASES["nf4"], ""),
]


@pytest.mark.parametrize(("name", "case", "format"), BLOCKS)
def test_blocks_have_exactly_the_same_weights(tmp_path: Path, name: str, case: Case, format: str) -> None:
    folder = make(tmp_path, case)
    weights, _, _ = Checkpoint.read(folder.path).locate()
    for module in MODULES:
        packed = weights.packed(f"{module}.weight")
        assert packed is not None
        blocks = packed.matrix.blocks()
        if not format:
            assert blocks is None
            continue
        assert blocks is not None
        assert blocks.format == format
        exact = folder.exact[f"{module}.weight"].float()
        for start, stop in ((0, len(exact)), (3, 19)):
            restored = restore(blocks.rows(start, stop).flatten(), format)
            assert torch.equal(restored.view(stop - start, -1), exact[start:stop])


@pytest.mark.parametrize(
    ("name", "blocks"), [("mlx-4", "Q4_1"), ("mxfp4", "MXFP4"), ("compressed-int8", "Q8_0"), ("gptq-4", "")]
)
def test_such_matrices_stay_packed(tmp_path: Path, name: str, blocks: str) -> None:
    """The logits are those of the exact weights; NaN is still named, and an adapter or ``restored`` unpacks them."""
    folder = make(tmp_path, CASES[name])
    notes = LoadNotes()
    model = load(folder.path, device=CPU, dtype=torch.float32, notes=notes)
    matrices = [module for module in model.modules() if isinstance(module, QuantizedMatrix)]
    assert {module.format for module in matrices} == ({blocks} if blocks else set())
    assert bool(matrices) == (notes.kept == (CASES[name].format,)) == (notes.restored == ())
    with torch.no_grad():
        exact = load(folder.path, device=CPU, dtype=torch.float32, restored=True)(IDS)
        assert (model(IDS) - exact).abs().max() <= 1e-4 * exact.abs().max()
    headers = read_headers(Checkpoint.read(folder.path))
    assert sum(headers.kept.values()) == sum(module.weight.nbytes for module in matrices)


def test_scales_that_blocks_cannot_hold(tmp_path: Path) -> None:
    """A scale with more bits than fp16 has, and one below its range."""
    for name, value in (("compressed-int8-packed", 0.0123456), ("compressed-int8-packed", 1e-9)):
        change = changed("weight_scale", lambda scale, value=value: torch.full(scale.shape, value))
        weights, _, _ = Checkpoint.read(make(tmp_path, CASES[name], change).path).locate()
        first, other = (weights.packed(f"{module}.weight") for module in (FIRST, FIRST.replace("q_proj", "k_proj")))
        assert first is not None
        assert other is not None
        assert first.matrix.blocks() is None
        assert other.matrix.blocks() is not None


def test_the_experts_of_gpt_oss_open_as_published(tmp_path: Path) -> None:
    """One tensor for all experts of a layer, in MXFP4 by outputs; the weights of transformers are by inputs."""
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 50, "head_dim": 16}
    config = GptOssConfig(
        **sizes, num_attention_heads=4, num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2
    )
    reference = GptOssForCausalLM._from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    stored, exact = {}, {}
    for name, parameter in reference.named_parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        stored[name] = parameter.detach().to(torch.bfloat16)
        if name.endswith(("gate_up_proj", "down_proj")):
            del stored[name]
            experts, columns, rows = parameter.shape
            blocks = torch.randint(256, (experts, rows, columns // 32, 16), generator=generator, dtype=torch.uint8)
            scales = torch.randint(120, 126, (experts, rows, columns // 32), generator=generator, dtype=torch.uint8)
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            exact[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        parameter.data.copy_(exact.get(name, parameter.data.to(torch.bfloat16).float()))
    save_file(stored, tmp_path / WEIGHTS)
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    (tmp_path / CONFIG).write_text(json.dumps(config.to_dict() | {"quantization_config": settings}))
    ids = torch.arange(40)[None]
    with torch.no_grad():
        expected = reference(ids).logits
        for restored in (False, True):
            notes = LoadNotes()
            model = Checkpoint.read(tmp_path).load(device=CPU, dtype=torch.float32, restored=restored, notes=notes)
            assert (model(ids) - expected).abs().max() <= 1e-4
            assert bool(notes.kept) != restored
