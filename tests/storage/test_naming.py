"""Tensor names in weight files: with prefixes that wrappers add, without the base model's, and unknown ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.files.names import CONFIG, WEIGHTS
from llmcli.storage.checkpoint import Checkpoint
from llmcli.storage.finite import LoadNotes
from tests.tiny import CASES, CPU, Tiny, TinyFactory, load, load_with_transformers, random_ids

IDS = random_ids(12, seed=0)
FAMILIES = [name for name in CASES if "-" not in name]
BASES = ("model.", "transformer.", "gpt_neox.")


def without_base(name: str) -> str:
    return next((name.removeprefix(base) for base in BASES if name.startswith(base)), name)


def rename(case: Tiny, folder: Path, new: Callable[[str], str], more: dict[str, Tensor] | None = None) -> Path:
    """A copy of the case's folder whose tensors have new names."""
    shutil.copytree(case.folder, folder, dirs_exist_ok=True)
    stored = {new(name): tensor for name, tensor in load_file(case.folder / WEIGHTS).items()}
    save_file(stored | (more or {}), folder / WEIGHTS)
    return folder


def assert_same(case: Tiny, folder: Path) -> None:
    """The folder's model has the case's logits, and uses all its tensors."""
    notes = LoadNotes()
    model = load(folder, device=CPU, dtype=torch.float32, notes=notes)
    with torch.no_grad():
        assert torch.equal(model(IDS), case.load()(IDS))
    assert notes.unused == ()


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_saved_from_the_base_model(tiny: TinyFactory, tmp_path: Path, name: str) -> None:
    case = tiny(name)
    folder = rename(case, tmp_path, without_base)
    assert not any(name.startswith(BASES) for name in load_file(folder / WEIGHTS))
    assert_same(case, folder)


@pytest.mark.parametrize("name", ["gemma2", "starcoder2"])
def test_weights_that_transformers_saves_from_the_base_model(tiny: TinyFactory, tmp_path: Path, name: str) -> None:
    case = tiny(name)
    case.reference.base_model.save_pretrained(tmp_path)
    assert_same(case, tmp_path)
    with torch.no_grad():
        assert (load_with_transformers(tmp_path)(IDS).logits - case.reference(IDS).logits).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma3_text", "mixtral", "stablelm-parallel"])
@pytest.mark.parametrize(
    "new",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"module._orig_mod.base_model.model.{name}",
        lambda name: name.replace("layers.1.", "layers.1._orig_mod.").replace("h.1.", "h.1._orig_mod."),
        lambda name: f"_fsdp_wrapped_module.{name.replace('.2.', '.2._fsdp_wrapped_module.')}",
        lambda name: f"language_model.{name}",
        lambda name: f"base_model.{name}",
        lambda name: f"base_model.{without_base(name)}",
        lambda name: f"model.{without_base(name)}",
        lambda name: f"model.{name}",
        lambda name: f"student.{without_base(name)}",
        lambda name: name if "head" in name else f"a.b.{name}",
    ],
    ids=[
        "compiled",
        "parallel",
        "peft",
        "all",
        "compiled-layer",
        "fsdp",
        "text",
        "other",
        "other-replaced",
        "model",
        "doubled",
        "replaced",
        "not-the-head",
    ],
)
def test_prefixes_of_wrappers(tiny: TinyFactory, tmp_path: Path, name: str, new: Callable[[str], str]) -> None:
    case = tiny(name)
    assert_same(case, rename(case, tmp_path, new))


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "gemma2"])
@pytest.mark.parametrize("prefix", ["", "text."])
def test_a_tied_model_of_which_only_the_head_is_stored(
    tiny: TinyFactory, tmp_path: Path, name: str, prefix: str
) -> None:
    case = tiny(name)
    embedding = "transformer.wte.weight" if name == "gpt2" else "model.embed_tokens.weight"
    folder = rename(case, tmp_path, lambda name: prefix + ("lm_head.weight" if name == embedding else name))
    assert_same(case, folder)
    assert load(folder, device=CPU).head is None
    if not prefix:
        with torch.no_grad():
            assert (load_with_transformers(folder)(IDS).logits - case.reference(IDS).logits).abs().max() <= 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_precomputed_tensors_are_dropped(tiny: TinyFactory, tmp_path: Path, name: str) -> None:
    layer = "transformer.h.0" if name == "gpt2" else f"{'gpt_neox' if name == 'gpt_neox' else 'model'}.layers.0"
    attention = {"gpt2": "attn", "gpt_neox": "attention"}.get(name, "self_attn")
    more = [f"{layer}.{attention}.rotary_emb.inv_freq", "model.rotary_emb.inv_freq", "rotary_emb.cos_cached"]
    more += [f"{layer}.attn.bias", f"{layer}.attention.masked_bias", f"layers.1.{attention}.rotary_emb.sin_cached"]
    case = tiny(name)
    assert_same(case, rename(case, tmp_path, str, {name: torch.ones(4) for name in more}))


def test_other_tensors_are_named_and_not_used(tiny: TinyFactory, tmp_path: Path) -> None:
    case = tiny("llama")
    layers = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in (3, 4)]
    others = ["model.norm.gain", "mtp.layers.0.self_attn.q_proj.weight"]
    others += [f"vision.{name}.weight" for name in ("layers.0.self_attn.q_proj", "embed_tokens", "norm")]
    more = layers + others
    folder = rename(case, tmp_path, lambda name: f"module.{name}", {f"module.{name}": torch.ones(2) for name in more})
    notes = LoadNotes()
    model = load(folder, device=CPU, dtype=torch.float32, notes=notes)
    grouped = "model.layers.{3,4}.mlp.up_proj.weight"
    assert sorted(notes.unused) == sorted(f"module.{name}" for name in (grouped, *others))
    with torch.no_grad():
        assert torch.equal(model(IDS), case.load()(IDS))


def test_a_head_that_is_missing_is_an_error_that_says_so(tiny: TinyFactory, tmp_path: Path) -> None:
    case = tiny("llama")
    case.reference.base_model.save_pretrained(tmp_path)
    with pytest.raises(LlmcliError, match=r"missing: lm_head\.weight .*base model"):
        load(tmp_path, device=CPU)


def test_a_text_model_with_the_names_of_a_multimodal_one(tiny: TinyFactory, tmp_path: Path) -> None:
    """An image encoder has the same names inside, under another prefix."""
    case = tiny("gemma3_text")
    tower = {
        f"vision_tower.{without_base(name)}": tensor + 1 for name, tensor in load_file(case.folder / WEIGHTS).items()
    }
    tower.pop("vision_tower.embed_tokens.weight", None)
    folder = rename(case, tmp_path, lambda name: f"model.language_model.{without_base(name)}", tower)
    notes = LoadNotes()
    model = load(folder, device=CPU, dtype=torch.float32, notes=notes)
    assert all(name.startswith("vision_tower.") for name in notes.unused)
    with torch.no_grad():
        assert torch.equal(model(IDS), case.load()(IDS))


def test_scales_of_8_bit_weights_are_found_without_the_prefix(tiny: TinyFactory, tmp_path: Path) -> None:
    case = tiny("llama")
    name = "model.layers.1.mlp.down_proj.weight"
    stored = load_file(case.folder / WEIGHTS)
    small = {name: (stored[name] / 0.25).to(torch.float8_e4m3fn), f"{name}_scale": torch.tensor([0.25])}
    folder = rename(case, tmp_path, str)
    save_file({without_base(key): tensor for key, tensor in (stored | small).items()}, folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    model = Checkpoint.read(folder).load(device=CPU, dtype=torch.float32)
    assert torch.equal(model.blocks[1].mlp.down.weight, 0.25 * small[name].float())
