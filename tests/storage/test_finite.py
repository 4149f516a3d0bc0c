"""NaN and infinity in weights: a single one is found in every format, wherever it is, and finite weights pass."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmcli.engine.tensor_parallel.transformer import load_split
from llmcli.errors import EXIT_FAILURE, LlmcliError
from llmcli.files.names import CONFIG, WEIGHTS
from llmcli.storage.checkpoint import Checkpoint
from llmcli.storage.finite import PARTS, SMALL, LoadNotes, is_finite
from llmcli.storage.quantize import Quantization
from llmcli.storage.quantized_checkpoint import save_quantized
from tests.tiny import CPU, TinyFactory, load

NOT_FINITE = [float("nan"), float("inf"), -float("inf")]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 7, 1000, SMALL * PARTS + 5])
def test_one_value_anywhere_is_found(dtype: torch.dtype, size: int) -> None:
    """Finite values may be so large that their sum is not finite."""
    largest = torch.full((size,), torch.finfo(dtype).max, dtype=dtype)
    random = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert is_finite(largest)
    assert is_finite(-largest)
    assert is_finite(random)
    for place in {0, size // 2, size - 1} & set(range(size)):
        for value in NOT_FINITE:
            for weights in (largest, random):
                bad = weights.clone()
                bad[place] = value
                assert not is_finite(bad)
                assert not is_finite(bad.flip(0).view(1, -1).t())


def damage(folder: Path, name: str, value: float, dtype: torch.dtype = torch.float32) -> None:
    """Store the folder's weights in ``dtype``, with one bad value in the middle of the tensor ``name``."""
    stored = {key: tensor.to(dtype) for key, tensor in load_file(folder / WEIGHTS).items()}
    stored[name].view(-1)[stored[name].numel() // 2] = value
    save_file(stored, folder / WEIGHTS)


def assert_found(folder: Path, *culprits: object, **options: Any) -> None:
    with pytest.raises(LlmcliError) as caught:
        load(folder, device=CPU, **options)
    assert caught.value.exit_code == EXIT_FAILURE
    for culprit in (*culprits, "NaN or infinity"):
        assert str(culprit) in caught.value.message


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("stored", DTYPES)
def test_every_dtype(tiny: TinyFactory, tmp_path: Path, stored: torch.dtype, value: float) -> None:
    folder = Path(shutil.copytree(tiny("llama").folder, tmp_path / "model"))
    name = "model.layers.1.self_attn.k_proj.weight"
    damage(folder, name, value, stored)
    for dtype in (None, torch.bfloat16, torch.float32):
        assert_found(folder, folder / WEIGHTS, name, "1 of 1536 values", dtype=dtype)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("llama", "model.embed_tokens.weight"),
        ("llama", "model.norm.weight"),
        ("llama", "lm_head.weight"),
        ("llama-tied", "model.embed_tokens.weight"),
        ("llama-biases", "model.layers.0.self_attn.q_proj.bias"),
        ("gpt2", "transformer.h.2.attn.c_attn.weight"),
        ("gpt2", "transformer.wpe.weight"),
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value.weight"),
        ("gemma3_text", "model.layers.0.self_attn.q_norm.weight"),
        ("cohere", "model.layers.0.self_attn.q_proj.weight"),
        ("mixtral", "model.layers.1.block_sparse_moe.experts.3.w2.weight"),
    ],
)
def test_every_kind_of_tensor(tiny: TinyFactory, tmp_path: Path, case: str, name: str) -> None:
    folder = Path(shutil.copytree(tiny(case).folder, tmp_path / "model"))
    damage(folder, name, float("nan"))
    assert_found(folder, name)


@pytest.mark.parametrize("damaged", ["weight", "scale"])
def test_8_bit_floats(tiny: TinyFactory, tmp_path: Path, damaged: str) -> None:
    folder = Path(shutil.copytree(tiny("llama").folder, tmp_path / "model"))
    name = "model.layers.0.self_attn.q_proj.weight"
    stored: dict[str, Tensor] = load_file(folder / WEIGHTS)
    stored |= {name: stored[name].to(torch.float8_e4m3fn), f"{name}_scale": torch.ones(len(stored[name]), 1)}
    bad = f"{name}_scale" if damaged == "scale" else name
    wide = stored[bad].float()
    wide[3] = torch.nan
    save_file(stored | {bad: wide.to(stored[bad].dtype)}, folder / WEIGHTS)
    assert_found(folder, folder / WEIGHTS, f"tensor {bad} contains")


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantized_weights(tiny: TinyFactory, tmp_path: Path, quantization: Quantization) -> None:
    """A block begins with its scale, in fp16; any bytes are valid codes."""
    case = tiny("llama")
    save_quantized(case.load(), quantization, tmp_path, json.loads((case.folder / CONFIG).read_text()))
    stored = load_file(tmp_path / WEIGHTS)
    for name in ("embedding.weight", "blocks.1.attn.qkv.weight", "head.weight"):
        size = 18 if quantization == "int4" and name.startswith("blocks") else 34
        for value in NOT_FINITE:
            bad = stored[name].clone()
            bad[-1, -size : 2 - size] = torch.tensor([value], dtype=torch.float16).view(torch.uint8)
            save_file(stored | {name: bad}, tmp_path / WEIGHTS)
            assert_found(tmp_path, tmp_path / WEIGHTS, f"tensor {name} contains")
        codes = stored[name].clone()
        codes[-1, 2 - size :] = 0xFE  # NaN and infinity if they were read as fp16
        save_file(stored | {name: codes}, tmp_path / WEIGHTS)
        load(tmp_path, device=CPU)
    name = "blocks.0.attn_norm.weight"
    stored[name][0] = torch.inf
    save_file(stored, tmp_path / WEIGHTS)
    assert_found(tmp_path, tmp_path / WEIGHTS, name)


def test_every_rank_checks_its_share(tiny: TinyFactory, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("llama").folder, tmp_path / "model"))
    name = "model.layers.1.mlp.down_proj.weight"
    stored = load_file(folder / WEIGHTS)
    stored[name][5, -1] = torch.nan  # a column of the second rank
    save_file(stored, folder / WEIGHTS)

    def load_rank(rank: int) -> None:
        group: Any = SimpleNamespace(device=CPU, rank=rank, size=2)
        load_split(Checkpoint.read(folder), group)

    load_rank(0)
    with pytest.raises(LlmcliError, match=rf"{name} contains NaN or infinity \(1 of"):
        load_rank(1)


def test_values_too_large_for_the_dtype_are_not_called_damaged(tiny: TinyFactory, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("llama").folder, tmp_path / "model"))
    damage(folder, "model.layers.0.self_attn.q_proj.weight", 1e6)
    load(folder, device=CPU, dtype=torch.bfloat16)
    with pytest.raises(LlmcliError, match=r"q_proj\.weight.* are too large for float16") as caught:
        load(folder, device=CPU, dtype=torch.float16)
    assert caught.value.kind == "weights-overflow"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_weights_are_checked_once(tiny: TinyFactory, dtype: torch.dtype) -> None:
    notes = LoadNotes()
    model = load(tiny("llama").folder, device=CPU, dtype=dtype, notes=notes)
    assert notes.checked_bytes == sum(parameter.nbytes for parameter in model.parameters())
    assert notes.check_seconds > 0
