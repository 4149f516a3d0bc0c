"""LoRA adapters merged at load, against peft on tiny models, and adapters that do not fit."""

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


def adapter(case: Tiny, folder: Path, **settings: Any) -> PeftModel:
    """A random adapter, saved into ``folder`` by peft; the model that has it."""
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
def test_logits_are_those_of_peft(tiny: TinyFactory, name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    case = tiny(name)
    theirs = adapter(case, tmp_path, **settings)
    ours = load(case.folder, device=CPU, dtype=torch.float32, adapter=tmp_path)
    with torch.no_grad():
        expected = theirs(IDS).logits
        assert (ours(IDS) - expected).abs().max() <= 1e-4
        assert (case.load()(IDS) - expected).abs().max() > 1e-1, "the adapter changes nothing"


def changed(case: Tiny, folder: Path, config: dict[str, Any] | None = None, **tensors: torch.Tensor | None) -> Path:
    """An adapter with other settings and with tensors replaced or (None) left out, by ends of their names."""
    adapter(case, folder)
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
    ("config", "tensors", "words"),
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
def test_adapters_that_do_not_fit_are_refused(
    tiny: TinyFactory, tmp_path: Path, config: dict[str, Any], tensors: dict[str, Any], words: str | None
) -> None:
    case = tiny("llama")
    folder = changed(case, tmp_path, config, **tensors)
    if words is None:
        load(case.folder, device=CPU, adapter=folder)
        return
    with pytest.raises(LlmcliError, match=words):
        load(case.folder, device=CPU, adapter=folder)


@pytest.mark.filterwarnings("ignore")
def test_an_embedding_that_is_also_the_head_is_not_adapted(tiny: TinyFactory, tmp_path: Path) -> None:
    case = tiny("llama-tied")
    adapter(case, tmp_path, target_modules=["embed_tokens"])
    with pytest.raises(LlmcliError, match="also the head"):
        load(case.folder, device=CPU, adapter=tmp_path)


def test_a_folder_without_an_adapter(tiny: TinyFactory, tmp_path: Path) -> None:
    with pytest.raises(LlmcliError, match=CONFIG):
        load(tiny("llama").folder, device=CPU, adapter=tmp_path)
