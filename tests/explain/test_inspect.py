"""`inspect` against transformers' parameter counts, the bytes of the opened model, and a filled cache."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llmcli.engine import size
from llmcli.engine.size import cache_bytes, empty_model, weight_bytes
from llmcli.errors import LlmcliError
from llmcli.explain.models import inspection as view
from llmcli.explain.models.architecture import architecture_of
from llmcli.explain.models.inspection import GROUPS, InspectReport, inspect, inspect_folder
from llmcli.files.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from llmcli.generation.loaded import LoadedModel, load
from llmcli.model.cache import KVCache
from llmcli.model.config import ModelConfig
from llmcli.model.device import Memory, memory_limit, physical_memory
from llmcli.storage.blocks import BLOCK
from llmcli.storage.checkpoint import Checkpoint
from llmcli.storage.quantize import quantize
from llmcli.storage.quantized_checkpoint import save_quantized
from llmcli.train.vocabulary import train_tokenizer
from tests.tiny import CASES, CONTEXT, CPU, KINDS, WINDOW, TinyFactory, learned

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
every_case, every_kind = pytest.mark.parametrize("name", CASES), pytest.mark.parametrize("name", KINDS)


def report_of(folder: Path, **changed: Any) -> InspectReport:
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(["the cat"], 258).save(str(folder / "tokenizer.json"))
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32", "quantization": None} | changed
    tokens = options.pop("tokens", None)

    def opened() -> LoadedModel:
        return load(folder, **options)

    return inspect_folder("m", folder, **options, tokens=tokens, open_model=opened)


def test_an_adapter_that_unties_the_head_adds_its_parameters(tiny: TinyFactory, tmp_path: Path) -> None:
    folder = tiny("llama-tied").folder
    plain = report_of(folder)
    head = torch.ones(plain.shape.rows, plain.shape.hidden)
    save_file({"base_model.model.lm_head.weight": head}, tmp_path / ADAPTER_WEIGHTS)
    (tmp_path / ADAPTER_CONFIG).write_text('{"peft_type": "LORA"}')
    report = report_of(folder, adapter=tmp_path)
    assert report.check.ok, report.check
    assert report.parameters == plain.parameters + head.numel()
    assert report.disk_bytes == plain.disk_bytes
    assert report.stored == plain.stored
    assert inspect(load(folder, adapter=tmp_path, dtype="float32"), tokens=3).check.ok


# Parameters.


@every_case
def test_parameters_match_transformers(tiny: TinyFactory, name: str) -> None:
    reference = tiny(name).reference
    report = report_of(tiny(name).folder)
    assert report.check.ok, report.check
    unused = 2 * reference.config.hidden_size if name == "opt" else 0  # rows of the table of positions
    assert report.parameters == sum(each.numel() for _, each in learned(reference)) - unused
    assert sum(group.parameters for group in report.groups) == report.parameters
    assert sum(group.share for group in report.groups) == pytest.approx(1)
    assert sum(group.bytes for group in report.groups) == report.needs[0].weight_bytes == 4 * report.parameters
    assert {group.name for group in report.groups} <= set(GROUPS)


@every_case
def test_groups_match_transformers(tiny: TinyFactory, name: str) -> None:
    """Groups parameters by transformers' names, which differ from ours."""
    counts = dict.fromkeys(GROUPS, 0)
    for theirs, parameter in learned(tiny(name).reference):
        counts[transformers_group(theirs)] += parameter.numel()
    counts["positions"] -= 2 * 48 if name == "opt" else 0  # unused rows
    found = {group.name: group.parameters for group in report_of(tiny(name).folder).groups}
    assert found == {group: count for group, count in counts.items() if count}


def transformers_group(name: str) -> str:
    if "wpe" in name or "embed_positions" in name:
        return "positions"
    if "per_layer" in name and "norm" not in name:
        return "per-layer embeddings"
    if any(part in name for part in ("embed_in", "embed_tokens", "embeddings.", "wte")):
        return "embedding"
    if "lm_head" in name or "embed_out" in name:
        return "head"
    if "norm" in name or ".ln_" in name or name.endswith(("layer_scalar", ".router.scale")):
        return "norms"
    if ".experts." in name:
        return "experts"
    if name.endswith(
        (
            "expert_bias",
            "correction_bias",
            ".feed_forward.gate.weight",
            ".mlp.gate.weight",
            ".mixer.gate.weight",
            "block_sparse_moe.gate.weight",
            ".router.weight",
            ".router.proj.weight",
            ".router.per_expert_scale",
            ".router.bias",
        )
    ):
        return "routers"
    if any(part in name for part in (".linear_attn.", ".conv.", ".mamba.")):
        return "recurrent layers"
    if ".mixer." in name:
        of_attention = any(part in name for part in (".q_proj.", ".k_proj.", ".v_proj.", ".o_proj."))
        of_mlp = any(part in name for part in (".up_proj.", ".down_proj."))
        return "attention" if of_attention else "MLP" if of_mlp else "recurrent layers"
    return "attention" if "attn" in name or "attention." in name else "MLP"


@pytest.mark.parametrize(("name", "chosen", "experts"), [("mixtral", 2, 4), ("qwen3_moe", 2, 6), ("olmoe", 2, 5)])
def test_only_the_chosen_experts_are_active(tiny: TinyFactory, name: str, chosen: int, experts: int) -> None:
    report = report_of(tiny(name).folder)
    (of_experts,) = [group.parameters for group in report.groups if group.name == "experts"]
    assert (report.shape.experts, report.shape.experts_per_token) == (experts, chosen)
    assert report.parameters - report.active == of_experts // experts * (experts - chosen)


def test_without_experts_all_parameters_are_active(tiny: TinyFactory) -> None:
    report = report_of(tiny("llama").folder)
    assert report.active == report.parameters


# Bytes.


@every_kind
@pytest.mark.parametrize("kind", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_match_the_opened_model(tiny: TinyFactory, name: str, kind: Any, dtype: str) -> None:
    model = Checkpoint.read(tiny(name).folder).load(device=CPU, dtype=DTYPES[dtype])
    predicted = weight_bytes(empty_model(model.config), DTYPES[dtype], kind)
    if kind is not None:
        quantize(model, kind)
    assert sum(predicted.values()) == sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "olmoe", "phi3"])
def test_quantized_checkpoints(tiny: TinyFactory, tmp_path: Path, name: str, kind: Any) -> None:
    raw = json.loads((tiny(name).folder / "config.json").read_text())
    save_quantized(tiny(name).load(), kind, tmp_path, raw)
    report = report_of(tmp_path)
    assert report.check.ok, report.check
    assert report.parameters == tiny(name).reference.num_parameters()
    assert [need.weights for need in report.needs] == [kind]
    assert report.measured is not None
    assert report.needs[0].weight_bytes == report.measured.weight_bytes
    assert (
        sum(part.bytes for part in report.stored) == report.disk_bytes < (tmp_path / "model.safetensors").stat().st_size
    )


def test_unused_tensors_are_named(tiny: TinyFactory, tmp_path: Path) -> None:
    """A copy of a tied head, as old files have it, is not counted twice."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny("llama-tied").folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    report = report_of(tmp_path)
    assert report.check.ok
    assert report.others == "lm_head.weight"
    assert report.shape.tied
    assert report.parameters == tiny("llama-tied").reference.num_parameters()
    tensors["lm_head.weight"] += 1  # no copy any more: a separate head
    save_file(tensors, tmp_path / "model.safetensors")
    other = report_of(tmp_path)
    assert other.check.ok
    assert not other.shape.tied
    assert other.parameters == report.parameters + tensors["lm_head.weight"].numel()


# The KV cache.


def filled(config: ModelConfig, tokens: int, chunk: int) -> KVCache:
    """A cache filled with keys and values in chunks, as generation fills it."""
    cache = KVCache(config, device=CPU, dtype=torch.float32)
    while cache.length < tokens:
        count = min(chunk, tokens - cache.length)
        for layer in cache.attending:
            heads, *widths = config.cached(layer)
            k, v = (torch.zeros(1, heads, count, width) for width in widths)
            cache.append(layer, k, v)
        for layer in cache.recurrent:
            assert config.mixer is not None
            cache.keep_state(layer, tuple(torch.zeros(1, *shape) for shape in config.mixer.state_shapes))
        cache.advance(count)
    return cache


def attended_bytes(config: ModelConfig, tokens: int) -> int:
    """The bytes of the keys and values that the last position attends to, counted one by one, and of states."""
    numbers = 0
    cache = KVCache(config, device=CPU, dtype=torch.float32)
    for layer in cache.attending:
        windowed = config.layer_type(layer) == "sliding_attention"
        window = config.sliding_window if windowed else None
        positions = sum(window is None or tokens - 1 - position < window for position in range(tokens))
        each = 2 * config.kv_heads(layer) * config.head_size(layer)
        numbers += positions * (each if config.latent is None else config.latent.rank + config.head_dim)
    shapes = () if config.mixer is None else config.mixer.state_shapes
    states = len(cache.recurrent) * 4 * sum(map(math.prod, shapes))
    return 4 * numbers + states


@every_kind
@pytest.mark.parametrize("tokens", [1, WINDOW, CONTEXT, 1500])
def test_a_filled_cache_is_in_the_predicted_range(tiny: TinyFactory, name: str, tokens: int) -> None:
    config = tiny(name).load().config
    found = cache_bytes(config, torch.float32, tokens, chunk=512, device=CPU)
    assert found.needed == attended_bytes(config, tokens)
    for chunk in (512, 7):
        assert found.needed <= filled(config, tokens, chunk).nbytes <= found.most
    growth = attended_bytes(config, 3001) - attended_bytes(config, 3000)  # far beyond any window
    assert found.per_token == growth
    assert found.windowed + found.states + 3000 * found.per_token == attended_bytes(config, 3000)
    assert found.most <= 1.5 * found.needed or found.windowed or found.states


def test_windows_save_memory(tiny: TinyFactory) -> None:
    config = tiny("gemma3_text").load().config
    full = replace(config, layer_types=(), sliding_window=None)
    assert (
        cache_bytes(config, torch.float32, 10**5, chunk=512, device=CPU).most
        < 0.4 * cache_bytes(full, torch.float32, 10**5, chunk=512, device=CPU).needed
    )


# Memory.


def test_fits_depends_on_the_machine(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    need = report_of(tiny("llama").folder).needs[0]
    for memory, fits in (
        (Memory(need.total, None), True),
        (Memory(need.total - 1, None), False),
        (Memory(2 * need.total, need.total - 1), False),
        (Memory(None, None), None),
    ):
        monkeypatch.setattr(view, "memory_of", lambda device, memory=memory: memory)
        report = report_of(tiny("llama").folder)
        assert report.needs[0].fits is fits
        assert (report.measured is None) == (fits is False)
        assert report.check.ok
        assert [other.weights for other in report.needs] == ["float32", "int8", "int4"]


def test_more_tokens_than_the_context_are_an_error(tiny: TinyFactory) -> None:
    assert [report_of(tiny("llama").folder, tokens=n).tokens for n in (None, 5, CONTEXT)] == [CONTEXT, 5, CONTEXT]
    with pytest.raises(LlmcliError, match=str(CONTEXT)):
        report_of(tiny("llama").folder, tokens=CONTEXT + 1)
    assert report_of(tiny("llama").folder, tokens=5).cache.needed < report_of(tiny("llama").folder).cache.needed


def test_this_machine_has_memory() -> None:
    assert (physical_memory() or 0) > 2**28


@pytest.mark.parametrize(
    ("file", "text", "limit"),
    [
        ("memory.max", "1073741824\n", 2**30),
        ("memory.max", "max\n", None),
        ("memory.max", "", None),
        ("memory/memory.limit_in_bytes", "2147483648\n", 2**31),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
    ],
)
def test_limits_of_containers(tmp_path: Path, file: str, text: str, limit: int | None) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert memory_limit(tmp_path) == limit
    assert memory_limit(tmp_path / "nowhere") is None
    assert Memory(5, limit).usable == 5


# Mistakes that the check must catch.


def test_a_tied_head_counted_twice_fails(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    assert report_of(tiny("llama-tied").folder).check.ok
    monkeypatch.setattr(view, "empty_model", lambda config: empty_model(replace(config, tie_word_embeddings=False)))
    report = report_of(tiny("llama-tied").folder)
    assert [claim.holds for claim in report.check.claims] == [False, False, True]
    monkeypatch.setattr(view, "empty_model", lambda config: empty_model(replace(config, tie_word_embeddings=True)))
    assert not report_of(tiny("llama").folder).check.ok


def test_an_ignored_window_fails(tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny("gemma2").folder, tmp_path, dirs_exist_ok=True)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"max_position_embeddings": 8192}))
    assert report_of(tmp_path).check.ok

    def uncapped(config: ModelConfig, *args: Any, **options: Any) -> size.CacheBytes:
        return cache_bytes(replace(config, layer_types=(), sliding_window=None), *args, **options)

    monkeypatch.setattr(view, "cache_bytes", uncapped)
    assert [claim.holds for claim in report_of(tmp_path).check.claims] == [True, True, False]


def test_ignored_key_value_heads_fail(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every head had its own keys and values."""

    def ungrouped(config: ModelConfig, *args: Any, **options: Any) -> size.CacheBytes:
        return cache_bytes(replace(config, num_key_value_heads=config.num_attention_heads), *args, **options)

    monkeypatch.setattr(view, "cache_bytes", ungrouped)
    assert not report_of(tiny("llama").folder).check.ok


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_forgotten_scales_fail(tiny: TinyFactory, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert report_of(tiny("llama").folder, quantization=kind).check.ok
    right = size.quantized_shape

    def without_scales(name: str, module: Any, kind: Any) -> tuple[int, int]:
        rows, width = right(name, module, kind)
        return rows, width - 2 * -(-module.weight.shape[1] // BLOCK)

    monkeypatch.setattr(size, "quantized_shape", without_scales)
    assert not report_of(tiny("llama").folder, quantization=kind).check.ok


def test_files_with_another_number_of_parameters_fail(
    tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine has no memory to open the model, which would raise an error."""
    shutil.copytree(tiny("llama").folder, tmp_path, dirs_exist_ok=True)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"intermediate_size": 64}))
    with pytest.raises(LlmcliError, match="shape"):
        report_of(tmp_path)
    monkeypatch.setattr(view, "memory_of", lambda device: Memory(1, None))
    assert not report_of(tmp_path).check.ok


# The architecture.


@every_case
def test_the_architecture_matches_transformers_config(tiny: TinyFactory, name: str) -> None:
    reference = tiny(name).reference.config
    shape = report_of(tiny(name).folder).shape
    assert shape.family == reference.model_type
    assert shape.layers == reference.num_hidden_layers
    assert shape.hidden == reference.hidden_size
    assert shape.heads == getattr(reference, "num_attention_heads", 1)
    types = getattr(reference, "layer_types", None) or []
    window = getattr(reference, "sliding_window", getattr(reference, "attention_chunk_size", None))
    if name == "gpt_neo":
        assert (shape.windowed, shape.window) == (reference.attention_layers.count("local"), reference.window_size)
        window = reference.window_size
    if types:
        assert shape.windowed == types.count("sliding_attention") + types.count("chunked_attention")
    elif name in ("phi3", "starcoder2", "mistral", "mixtral"):
        assert shape.windowed == shape.layers
    assert shape.window == (window if shape.windowed else None)
    words = " ".join(shape.particulars)
    assert (shape.rope is None) == any(word in words for word in ("learned", "no position", "ALiBi"))


def test_a_plain_llama_has_no_particulars_and_other_families_do(tiny: TinyFactory) -> None:
    assert architecture_of(tiny("llama").load().config, 5).particulars == ()
    found = {name: " | ".join(architecture_of(tiny(name).load().config, 5).particulars) for name in CASES}
    for name, word in {
        "gpt2": "learned",
        "gemma2": "logits capped softly at ±2",
        "gemma3_text": "norms on queries and keys, per head",
        "llama-biases": "biases in q, k and v, attention output, MLP",
        "gpt_neox": "in parallel",
        "cohere": "after one shared norm",
        "granite": "residual times 0.7",
        "olmo2": "not before",
        "smollm3": "layers without positions: 1",
        "qwen3_moe": "instead of experts: 1",
        "deepseek_v2": "keys and values from a latent vector of 20, cached with 16 rotated features",
        "deepseek_v3": "experts from the best 2 of 4 groups",
    }.items():
        assert word in found[name], (name, found[name])


def test_a_report_can_be_written_as_json(tiny: TinyFactory) -> None:
    from llmcli.render import json_forms

    report = report_of(tiny("gemma3_text").folder)
    assert json.loads(json.dumps(json_forms.record(report)))["parameters"] == report.parameters
    assert dataclasses.is_dataclass(report)
