"""LoRA adapters merged while loading, against peft on tiny models, and adapters that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from llmcli.errors import LlmcliError
from llmcli.files.names import ADAPTER_CONFIG as CONFIG
from llmcli.files.names import ADAPTER_WEIGHTS as WEIGHTS
from tests.tiny import CPU, Tiny, TinyFactory, load, load_with_transformers, random_ids

IDS = random_ids(40, seed=3)


def save_adapter(case: Tiny, folder: Path, **settings: Any) -> PeftModel:
    """Save a random adapter with peft; return peft's model with it."""
    torch.manual_seed(0)
    options = {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj", "down_proj"]} | settings
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
        ("llama", {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"layers.1.self_attn.v_proj": 20}}),
        ("llama", {"target_modules": ["gate_proj"], "modules_to_save": ["lm_head"]}),
        ("llama", {"target_modules": ["embed_tokens", "o_proj"]}),
        ("llama-biases", {"bias": "all"}),
        ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        ("gpt_neox", {"target_modules": ["query_key_value", "dense"]}),
        ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
        ("cohere", {"target_modules": ["q_proj", "k_proj"]}),
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
        ({"lora_alpha": "x"}, {}, "lora_alpha"),
        ({"alpha_pattern": {"(a+)+": 1}}, {}, "alpha_pattern"),
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


@pytest.mark.filterwarnings("ignore")
def test_adapting_an_embedding_that_is_also_the_head_is_rejected(tiny: TinyFactory, tmp_path: Path) -> None:
    case = tiny("llama-tied")
    save_adapter(case, tmp_path, target_modules=["embed_tokens"])
    with pytest.raises(LlmcliError, match="also the head"):
        load(case.folder, device=CPU, adapter=tmp_path)


def test_a_folder_without_an_adapter(tiny: TinyFactory, tmp_path: Path) -> None:
    with pytest.raises(LlmcliError, match=CONFIG):
        load(tiny("llama").folder, device=CPU, adapter=tmp_path)
