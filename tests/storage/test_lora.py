"""LoRA adapters merged while loading, against peft on tiny models, and adapters that do not fit."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from llmcli.engine.tensor_parallel.transformer import load_split
from llmcli.errors import LlmcliError
from llmcli.files.names import ADAPTER_CONFIG as CONFIG
from llmcli.files.names import ADAPTER_WEIGHTS as WEIGHTS
from llmcli.storage import patterns
from llmcli.storage.checkpoint import Checkpoint
from tests.tiny import CPU, VOCAB, Tiny, TinyFactory, load, load_with_transformers, random_ids

IDS = random_ids(40, seed=3)


def save_adapter(case: Tiny, folder: Path, **settings: Any) -> PeftModel:
    """Save a random adapter with peft; return peft's model with it."""
    torch.manual_seed(0)
    options = {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj", "down_proj"]} | settings
    options = copy.deepcopy(options)  # peft changes its arguments
    model = get_peft_model(load_with_transformers(case.folder), LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {}),
        ("llama", {"use_rslora": True}),
        ("llama", {"init_lora_weights": "mica"}),
        ("llama", {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"layers.1.self_attn.v_proj": 20}}),
        ("llama", {"target_modules": ["gate_proj"], "modules_to_save": ["lm_head"]}),
        ("llama", {"target_modules": ["embed_tokens", "o_proj"]}),
        ("llama-biases", {"bias": "all"}),
        ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        ("gpt_neox", {"target_modules": ["query_key_value", "dense"]}),
        ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
        ("cohere", {"target_modules": ["q_proj", "k_proj"]}),
        (
            "qwen3_5_text",
            {"target_modules": [*(f"in_proj_{part}" for part in ("qkv", "z", "b", "a")), "out_proj"], "lora_alpha": 2},
        ),
        ("qwen3_next", {"target_modules": ["in_proj_qkvz", "in_proj_ba", "out_proj"]}),
        ("lfm2", {"target_modules": ["in_proj", "out_proj", "w1"]}),
        ("deepseek_v3", {"target_modules": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"]}),
        ("granitemoehybrid", {"target_modules": ["in_proj", "out_proj", "input_linear"]}),
        ("mamba2", {"target_modules": ["in_proj", "embeddings"]}),
        ("nemotron_h", {"target_modules": ["in_proj", "o_proj", "up_proj"]}),
        ("falcon_h1", {"target_modules": ["in_proj", "k_proj", "gate_proj"]}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_logits_match_peft(tiny: TinyFactory, name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    case = tiny(name)
    theirs = save_adapter(case, tmp_path, **settings)
    ours = load(case.folder, device=CPU, dtype=torch.float32, adapter=tmp_path)
    with torch.no_grad():
        expected = theirs(IDS).logits
        assert (ours(IDS) - expected).abs().max() <= 1e-4
        assert (case.load()(IDS) - expected).abs().max() > 1e-1, "the adapter has no effect"


def save_changed(
    case: Tiny, folder: Path, config: dict[str, Any] | None = None, **tensors: torch.Tensor | None
) -> Path:
    """Save an adapter with changed settings and tensors replaced or (None) removed, given by ends of their names."""
    save_adapter(case, folder)
    raw = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(raw | (config or {})))
    stored = load_file(folder / WEIGHTS)
    for ending, tensor in tensors.items():
        names = [name for name in stored if name.replace(".", "_").endswith(ending)] or [ending]
        for name in names:
            stored.pop(name, None)
            if tensor is not None:
                stored[name] = tensor
    save_file(stored, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"peft_type": "IA3"}, {}, "IA3"),
        ({"use_dora": True}, {}, "use_dora"),
        ({"init_lora_weights": "pissa_niter_4"}, {}, "pissa_niter_4"),
        ({"init_lora_weights": "olora"}, {}, "olora"),
        ({"init_lora_weights": "gaussian", "use_dora": False}, {}, None),
        ({"alora_invocation_tokens": [1, 2]}, {}, "alora_invocation_tokens"),
        ({"trainable_token_indices": [1]}, {}, "trainable_token_indices"),
        ({"lora_alpha": "x"}, {}, "adapter_config.json: lora_alpha is 'x'"),
        ({"use_rslora": "yes"}, {}, "adapter_config.json: use_rslora"),
        ({"init_lora_weights": "orthogonal"}, {}, None),
        ({"init_lora_weights": "Gaussian"}, {}, None),
        ({"alpha_pattern": {"(q_proj": 1}}, {}, "alpha_pattern .* invalid: '\\(q_proj'"),
        ({"alpha_pattern": {"q_proj|v_proj": "x"}}, {}, "adapter_config.json: q_proj|v_proj"),
        ({"r": 5}, {}, r"adapter_config.json: the rank of .*layers.0.* is 5, but its tensors have rank 3"),
        ({"rank_pattern": {r".*\.1\..*q_proj": 2}}, {}, r"layers.1.self_attn.q_proj is 2, but its tensors have rank 3"),
        ({"r": None}, {}, None),
        ({"alpha_pattern": []}, {}, None),
        ({"alpha_pattern": [1]}, {}, "alpha_pattern"),
        ({}, {"0_self_attn_q_proj_lora_A_weight": None}, "missing"),
        ({}, {"0_self_attn_q_proj_lora_A_weight": torch.ones(3, 5)}, "does not fit"),
        ({}, {"0_self_attn_q_proj_lora_A_weight": torch.ones(4, 48)}, "does not fit"),
        ({}, {"0_self_attn_q_proj_lora_A_weight": torch.ones(3)}, "does not fit"),
        ({}, {"0_self_attn_q_proj_lora_A_weight": torch.ones(0, 48)}, "does not fit"),
        ({}, {"base_model.model.model.layers.9.weight": torch.ones(2, 2)}, "model.layers.9.weight"),
        ({}, {"base_model.model.model.norm.weight": torch.ones(2)}, "does not fit"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_unsupported_or_unfitting_adapters_are_rejected(
    tiny: TinyFactory, tmp_path: Path, config: dict[str, Any], tensors: dict[str, Any], message: str | None
) -> None:
    case = tiny("llama")
    folder = save_changed(case, tmp_path, config, **tensors)
    if message is None:
        load(case.folder, device=CPU, adapter=folder)
        return
    with pytest.raises(LlmcliError, match=message):
        load(case.folder, device=CPU, adapter=folder)


EMBEDDING, HEAD = ["embed_tokens", "q_proj"], ["lm_head"]


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": EMBEDDING},
        {"target_modules": HEAD},
        {"target_modules": [*EMBEDDING, *HEAD]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": HEAD},
        {"modules_to_save": ["embed_tokens", *HEAD]},
    ],
)
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_an_embedding_that_is_also_the_head_is_untied_as_in_peft(
    tiny: TinyFactory, tmp_path: Path, settings: dict[str, Any], tie: bool
) -> None:
    case = tiny("llama-tied")
    theirs = save_adapter(case, tmp_path, ensure_weight_tying=tie, **settings)
    ours = load(case.folder, device=CPU, dtype=torch.float32, adapter=tmp_path)
    assert ours.head is not None
    with torch.no_grad():
        assert (ours(IDS) - theirs(IDS).logits).abs().max() <= 1e-4
        assert torch.equal(ours.head.weight, ours.embedding.weight) == tie
    for rank in (0, 1):  # the ranks' shares together are the whole
        group: Any = SimpleNamespace(device=CPU, rank=rank, size=2)
        share = load_split(Checkpoint.read(case.folder), group, adapter=tmp_path).head.weight
        assert torch.equal(share, ours.head.weight[VOCAB * rank // 2 : VOCAB * (rank + 1) // 2])


@pytest.mark.parametrize("name", ["gemma3_text", "gpt2", "cohere"])
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_tied_models_of_other_families(tiny: TinyFactory, tmp_path: Path, name: str, head: bool) -> None:
    case = tiny(name)
    embedding = "wte" if name == "gpt2" else "embed_tokens"
    theirs = save_adapter(case, tmp_path, target_modules=HEAD if head else [embedding])
    ours = load(case.folder, device=CPU, dtype=torch.float32, adapter=tmp_path)
    with torch.no_grad():
        assert (ours(IDS) - theirs(IDS).logits).abs().max() <= 1e-4
        assert (case.load()(IDS) - theirs(IDS).logits).abs().max() > 1e-1, "the adapter has no effect"


@pytest.mark.parametrize(
    "patterns",
    [
        {r".*\.q_proj": 14, "down_proj": 3},
        {r"layers\.[01]\.self_attn\.(q|v)_proj": 14, r"layers\.\d+\.self_attn\..*": 1, "layers.2.mlp.down_proj": 2},
        {r"^model\.layers\.1\.mlp\.down_proj": 14},
        {r"^layers\.1\.mlp\.down_proj": 14, "proj": 1, r"\w+_proj": 2},
        {"self_attn.q_proj|mlp.down_proj": 14},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_alpha_pattern_is_a_regular_expression_as_in_peft(
    tiny: TinyFactory, tmp_path: Path, patterns: dict[str, int]
) -> None:
    case = tiny("llama")
    theirs = save_adapter(case, tmp_path, alpha_pattern=patterns, rank_pattern={r".*v_proj": 2})
    ours = load(case.folder, device=CPU, dtype=torch.float32, adapter=tmp_path)
    with torch.no_grad():
        assert (ours(IDS) - theirs(IDS).logits).abs().max() <= 1e-4


@pytest.mark.filterwarnings("ignore")
def test_a_regular_expression_that_does_not_end_is_an_error(
    tiny: TinyFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.5)
    folder = save_changed(tiny("llama"), tmp_path, {"alpha_pattern": {r"((\w|\.)+)+!": 1}})
    with pytest.raises(LlmcliError, match="alpha_pattern has a regular expression that is not matched within"):
        load(tiny("llama").folder, device=CPU, adapter=folder)


@pytest.mark.parametrize(
    "new",
    [
        lambda name: re.sub(r"(?<=lora_[AB])", ".default", name),
        lambda name: re.sub(r"(?<=lora_[AB])", ".my_adapter", name),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.removeprefix("base_model.model.model."),
        lambda name: name.replace("base_model.model.", "base_model.model.base_model.model."),
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace("lm_head.weight", "lm_head.modules_to_save.default.weight"),
    ],
    ids=["default", "named", "no-prefix", "base-model", "twice", "wrapped", "saved-module"],
)
@pytest.mark.filterwarnings("ignore")
def test_other_forms_of_the_keys(tiny: TinyFactory, tmp_path: Path, new: Callable[[str], str]) -> None:
    case = tiny("llama")
    theirs = save_adapter(case, tmp_path, modules_to_save=["lm_head"])
    stored = {new(name) if "lora_" in name or "head" in name else name: value for name, value in
              load_file(tmp_path / WEIGHTS).items()}  # fmt: skip
    assert set(stored) != set(load_file(tmp_path / WEIGHTS))
    if any("modules_to_save" in name for name in stored):
        stored["base_model.model.lm_head.original_module.weight"] = torch.zeros(97, 48)
    save_file(stored, tmp_path / WEIGHTS)
    ours = load(case.folder, device=CPU, dtype=torch.float32, adapter=tmp_path)
    with torch.no_grad():
        assert (ours(IDS) - theirs(IDS).logits).abs().max() <= 1e-4


@pytest.mark.filterwarnings("ignore")
def test_the_keys_of_a_whole_state_dict(tiny: TinyFactory, tmp_path: Path) -> None:
    """As torch saves peft's model, with the adapter's name in the keys of embeddings, too."""
    case = tiny("llama")
    theirs = save_adapter(case, tmp_path, target_modules=["embed_tokens", "q_proj"], modules_to_save=["lm_head"])
    state = {name: value.contiguous() for name, value in theirs.state_dict().items()}
    assert any(name.endswith("lora_embedding_A.default") for name in state)
    assert any(name.endswith("modules_to_save.default.weight") for name in state)
    save_file(state, tmp_path / WEIGHTS)
    ours = load(case.folder, device=CPU, dtype=torch.float32, adapter=tmp_path)
    with torch.no_grad():
        assert (ours(IDS) - theirs(IDS).logits).abs().max() <= 1e-4


@pytest.mark.filterwarnings("ignore")
def test_two_adapters_in_a_file_are_an_error(tiny: TinyFactory, tmp_path: Path) -> None:
    case = tiny("llama")
    save_adapter(case, tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    more = {name.replace(".weight", ".other.weight"): value.clone() for name, value in stored.items()}
    save_file(stored | more, tmp_path / WEIGHTS)
    with pytest.raises(LlmcliError, match="two adapters for model"):
        load(case.folder, device=CPU, adapter=tmp_path)


def test_a_folder_without_an_adapter(tiny: TinyFactory, tmp_path: Path) -> None:
    case = tiny("llama")

    def error() -> str:
        with pytest.raises(LlmcliError) as caught:
            load(case.folder, device=CPU, adapter=tmp_path)
        return str(caught.value)

    assert CONFIG in error()
    (tmp_path / CONFIG).write_text('{"peft_type": "LORA", "r": 4}')
    assert "has no adapter_model.safetensors (download it again)" in error()
    (tmp_path / "adapter_model.bin").touch()
    assert "weights that are pickled (adapter_model.bin)" in error()
    save_file({}, tmp_path / WEIGHTS)
    assert "contains no tensors" in error()
    for data, what in ((b"GGUF", "a GGUF file"), (b"x", "a file")):
        (tmp_path / "x.gguf").write_bytes(data)
        with pytest.raises(LlmcliError, match=f"x.gguf: this is {what}, and llmcli merges only adapters in PEFT's"):
            load(case.folder, device=CPU, adapter=tmp_path / "x.gguf")
