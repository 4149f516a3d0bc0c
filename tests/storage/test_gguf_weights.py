"""GGUF files against the same model in a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmcli.engine.transformer import EngineTransformer
from llmcli.errors import LlmcliError
from llmcli.files.atomic import replacing
from llmcli.generation.filters import Temperature
from llmcli.generation.loaded import load
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import steps
from llmcli.model.families import FAMILIES
from llmcli.model.families.gguf import described, metadata_of
from llmcli.model.families.gguf_contents import Contents
from llmcli.model.transformer import Transformer
from llmcli.storage.checkpoint import Checkpoint, save
from llmcli.storage.gguf.export import GgufExport
from llmcli.storage.quantize import QuantizedEmbedding, QuantizedLinear, QuantizedStack, name_of, quantization_of
from tests.gguf_file import write_gguf

CPU = torch.device("cpu")
NULL = "null"  # in config.json; None: the key is missing
BASE: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "rms_norm_eps": 0.02,
    "rope_theta": 500.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2}
GEMMA = {"sliding_window": 8, "query_pre_attn_scalar": 32, "tie_word_embeddings": True, "num_hidden_layers": 7}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + pair / 20 for pair in range(12)],
    "long_factor": [1.5 + pair / 2 for pair in range(12)],
    "original_max_position_embeddings": 16,
}
GPT2 = {
    **{
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 2,
        "n_positions": 128,
        "intermediate_size": 256,
        "layer_norm_epsilon": 0.02,
    },
    **{"num_key_value_heads": 4, "head_dim": 16, "rms_norm_eps": None, "rope_theta": None},
}
NEOX = {
    **{"num_key_value_heads": 4, "head_dim": 16, "partial_rotary_factor": 0.5, "layer_norm_eps": 0.02},
    "rms_norm_eps": None,
}
STABLELM = {"head_dim": 16, "partial_rotary_factor": 0.25, "layer_norm_eps": 0.02, "rms_norm_eps": None}
GPT_OSS = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "sliding_window": 8}
LFM2: dict[str, Any] = {"head_dim": None, "rms_norm_eps": None, "norm_eps": 0.02, "conv_L_cache": 3}
DELTA_NET: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "num_hidden_layers": 3,
    "partial_rotary_factor": 0.25,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}
GATED_SHARED = {**MOE, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48}
GRANITE_HYBRID: dict[str, Any] = {
    "head_dim": None,
    "layer_types": ["mamba", "attention"],
    "position_embedding_type": "nope",
    "shared_intermediate_size": 96,
    "mamba_n_heads": 8,
    "mamba_d_state": 16,
    "mamba_n_groups": 2,
    "mamba_d_conv": 4,
    "logits_scaling": 3.0,
    "attention_multiplier": 0.3,
    "embedding_multiplier": 1.5,
    "residual_multiplier": 0.7,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-biases": {"attention_bias": True, "mlp_bias": True},
    "llama-tied-llama3": {"tie_word_embeddings": True, "rope_scaling": LLAMA3},
    "llama-linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama-yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {"head_dim": 16},
    "qwen3": {},
    "qwen3_moe": {**MOE, "moe_intermediate_size": 32, "norm_topk_prob": True},
    "qwen2_moe": {**GATED_SHARED, "head_dim": 16, "norm_topk_prob": False},
    "gemma2": {**GEMMA, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 2.0},
    "gemma3_text": {**GEMMA, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "phi": {"head_dim": 16, "partial_rotary_factor": 0.5, "layer_norm_eps": 0.02, "rms_norm_eps": None},
    "phi3": {"head_dim": 16, "sliding_window": 8},
    "phi3-longrope": {"partial_rotary_factor": 0.75, "rope_scaling": LONGROPE},
    "smollm3": {"num_hidden_layers": 4, "head_dim": 16},
    "granite": {
        "head_dim": 16,
        "logits_scaling": 3.0,
        "attention_multiplier": 0.3,
        "embedding_multiplier": 1.5,
        "residual_multiplier": 0.7,
    },
    "olmo2": {"head_dim": 16},
    "olmo3": {
        "head_dim": 16,
        "num_hidden_layers": 4,
        "sliding_window": 8,
        "rope_theta": 500000.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    },
    "olmoe": {**MOE, "head_dim": 16},
    "gpt2": {**GPT2, "tie_word_embeddings": True, "activation_function": "gelu_new"},
    "gpt2-untied": {**GPT2, "n_inner": 96, "intermediate_size": 96},
    "gpt_neox": {**NEOX, "use_parallel_residual": True},
    "gpt_neox-serial": {**NEOX, "use_parallel_residual": False},
    "starcoder2": {"head_dim": 16, "rms_norm_eps": None, "norm_epsilon": 0.02, "tie_word_embeddings": True},
    "stablelm": {**STABLELM, "use_qkv_bias": True, "use_parallel_residual": False},
    "stablelm-parallel": {**STABLELM, "use_parallel_residual": True, "qk_layernorm": True},
    "cohere": {
        "head_dim": 16,
        "rms_norm_eps": None,
        "layer_norm_eps": 0.02,
        "logit_scale": 0.5,
        "tie_word_embeddings": True,
    },
    "cohere2": {
        "head_dim": 16,
        "num_hidden_layers": 4,
        "sliding_window": 8,
        "rms_norm_eps": None,
        "layer_norm_eps": 0.02,
        "logit_scale": 0.5,
        "tie_word_embeddings": True,
    },
    "gpt_oss": {**GPT_OSS, "rope_scaling": {"rope_type": "default"}},
    "gpt_oss-yarn": {
        **GPT_OSS,
        "rope_scaling": {
            **{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
            "truncate": False,
        },
    },
    "seed_oss": {"attention_bias": True},
    "arcee": {},
    "ernie4_5": {},
    "glm4": {"partial_rotary_factor": 0.5, "attention_bias": True},
    "hunyuan_v1_dense": {"rope_scaling": {"rope_type": "dynamic", "alpha": 3.0}},
    "lfm2": {**LFM2, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {
        **LFM2,
        **MOE,
        "layer_types": ["full_attention", "conv"],
        "num_dense_layers": 1,
        "moe_intermediate_size": 32,
        "tie_word_embeddings": True,
    },
    "qwen3_5_text": DELTA_NET,
    "qwen3_5_moe_text": {**DELTA_NET, **GATED_SHARED},
    "qwen3_next": {**DELTA_NET, **GATED_SHARED},
    "granitemoehybrid": {**GRANITE_HYBRID, "num_local_experts": 0},
    "granitemoehybrid-experts": {**GRANITE_HYBRID, "num_local_experts": 4, "num_experts_per_tok": 2},
}

LATENT: dict[str, Any] = {
    "head_dim": None,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "kv_lora_rank": 24,
    "q_lora_rank": 28,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 16,
    "v_head_dim": 12,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}
LATENT_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
GEMMA4: dict[str, Any] = {
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 8,
    "tie_word_embeddings": True,
    "vocab_size_per_layer_input": 67,
    "num_kv_shared_layers": 0,
    "rope_theta": None,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "rope_theta": 500.0, "partial_rotary_factor": 0.25},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    },
}
FALCON_H1: dict[str, Any] = {
    "mamba_d_ssm": 96,
    "mamba_n_heads": 6,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 2,
    "mamba_d_conv": 4,
    "mamba_norm_before_gate": False,
    "embedding_multiplier": 1.5,
    "lm_head_multiplier": 0.7,
    "mlp_multipliers": [0.6, 1.4],
    "key_multiplier": 0.8,
    "attention_in_multiplier": 1.2,
    "attention_out_multiplier": 0.9,
    "ssm_multipliers": [0.7, 1.3, 0.8, 1.2, 0.6],
    "ssm_in_multiplier": 1.1,
    "ssm_out_multiplier": 0.75,
}
NEMOTRON_H: dict[str, Any] = {
    **{"num_hidden_layers": 3, "rms_norm_eps": None, "layer_norm_epsilon": 0.02},
    **{"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2, "conv_kernel": 4},
}
FALCON: dict[str, Any] = {
    **dict.fromkeys(("head_dim", "intermediate_size", "num_key_value_heads", "rms_norm_eps")),
    "layer_norm_epsilon": 0.02,
}
# Cases whose files ``write_gguf`` does not write: their files are compared with what llama.cpp computes.
WRITTEN: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        **LATENT,
        "n_group": 4,
        "topk_group": 2,
        "rope_scaling": {**LATENT_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "deepseek_v2": {
        **LATENT,
        "q_lora_rank": NULL,
        "topk_method": "greedy",
        "routed_scaling_factor": 1.5,
        "rope_scaling": {**LATENT_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "glm4_moe_lite": LATENT,
    "gemma4_text": {
        **GEMMA4,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 16,
        "final_logit_softcapping": 6.0,
    },
    "falcon_h1": FALCON_H1,
    "falcon_h1-normed": {**FALCON_H1, "mamba_rms_norm": True, "mlp_bias": True},
    "mamba2": {
        **{"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2, "conv_kernel": 4, "expand": 2},
        **{"rms_norm_eps": None, "layer_norm_epsilon": 0.02, "max_position_embeddings": None},
        **{"intermediate_size": None, "num_attention_heads": None},
        "tie_word_embeddings": True,
    },
    "nemotron_h": {**NEMOTRON_H, "hybrid_override_pattern": "M-*"},
    "nemotron_h-experts": {
        **NEMOTRON_H,
        "hybrid_override_pattern": "E*ME",
        "num_hidden_layers": 4,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "n_group": 3,
        "topk_group": 2,
        "moe_intermediate_size": 32,
        "moe_shared_expert_intermediate_size": 48,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
    },
    "gemma": {"tie_word_embeddings": True},
    "olmo": {"head_dim": 16, "rms_norm_eps": None, "clip_qkv": 1.5},
    "exaone4": {"head_dim": 16, "sliding_window": NULL},
    "ministral3": {"rope_scaling": {**LATENT_YARN, "mscale": 1.0, "mscale_all_dim": 0.5, "llama_4_scaling_beta": 0.5}},
    "apertus": {"rope_scaling": LLAMA3},
    "bloom": {**FALCON, "seq_length": 128},
    "falcon": FALCON,
    "falcon-grouped": {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True},
    "llama4_text": {
        **{"head_dim": 16, "num_hidden_layers": 4, "interleave_moe_layer_step": 2},
        **{"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 32, "intermediate_size_mlp": 96},
    },
    "gemma4_text-moe": {
        **GEMMA4,
        "layer_types": ["sliding_attention", "full_attention"],
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 5,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
    },
}


def write_model(folder: Path, case: str, **changed: Any) -> Path:
    """Write a random model to ``folder``, in the layout of its family, and return the folder."""
    raw = {"model_type": case.partition("-")[0], **BASE, **(MODELS | WRITTEN)[case], **changed}
    raw = {key: None if value == NULL else value for key, value in raw.items() if value is not None}
    config = FAMILIES[raw["model_type"]].parse(raw)
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        spread = 0.3 if "norm" in name else 1.0 if name.startswith("embedding") else 0.2
        torch.nn.init.normal_(parameter, 0.0 if config.norm_offset else "norm" in name, spread, generator)
    save(model, folder, raw, dtype=torch.float32)
    return folder


def logits_of(path: Path, length: int = 40) -> Tensor:
    """The logits of a fixed text of ``length`` tokens, in float32."""
    model = Checkpoint.read(path).load(device=CPU, dtype=torch.float32, build=EngineTransformer)
    with torch.inference_mode():
        logits: Tensor = model(torch.arange(length)[None] * 7 % 67)
    return logits.float()


@pytest.mark.parametrize("case", MODELS)
def test_a_gguf_file_has_the_logits_of_its_model(case: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", case)
    write_gguf(folder, tmp_path / "model.gguf")
    assert Checkpoint.read(tmp_path / "model.gguf").raw["eos_token_id"] == 2
    expected = logits_of(folder)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits_of(tmp_path / "model.gguf"), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("type", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_matrices_are_those_of_their_restored_weights(type: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama")
    stored = GGMLQuantizationType[type]
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            tensors[name] = torch.from_numpy(dequantize(quantize(tensor.numpy(), stored), stored)).view(tensor.shape)
    write_gguf(folder, tmp_path / "model.gguf", lambda name, tensor: type if tensor.ndim == 2 else "F32")
    save_file(tensors, folder / "model.safetensors")
    torch.testing.assert_close(logits_of(tmp_path / "model.gguf"), logits_of(folder), atol=1e-4, rtol=1e-5)
    model = Checkpoint.read(tmp_path / "model.gguf").load(device=CPU)
    packed = type.startswith("Q")
    assert isinstance(model.blocks[0].attn.out, QuantizedLinear) == packed
    assert isinstance(model.blocks[0].attn.qkv, QuantizedStack) == packed
    assert isinstance(model.embedding, QuantizedEmbedding) == packed
    assert model.dtype == {"F16": torch.float16}.get(type, torch.bfloat16)


@pytest.mark.parametrize("case", ["llama-biases", "mixtral", "phi3"])
def test_matrices_whose_parts_have_different_formats_stay_packed(case: str, tmp_path: Path) -> None:
    """As files have whose names end in _M. The compiled engine decodes them, too."""
    folder = write_model(tmp_path / "model", case)
    formats = ("Q8_0", "Q4_1", "Q5_0", "Q4_0", "Q5_1")
    used: dict[str, str] = {}

    def type_of(name: str, tensor: Tensor) -> str:
        return "F32" if tensor.ndim < 2 else used.setdefault(name, formats[len(used) % len(formats)])

    write_gguf(folder, tmp_path / "model.gguf", type_of)
    model = Checkpoint.read(tmp_path / "model.gguf").load(device=CPU, dtype=torch.float32, build=EngineTransformer)
    assert quantization_of(model) == name_of(formats) == "Q4_0+Q4_1+Q5_0+Q5_1+Q8_0"
    ids, cache = [number * 7 % 67 for number in range(20)], model.new_cache()
    with torch.inference_mode():
        expected = model(torch.tensor([ids]))[0]
    restored = Checkpoint.read(tmp_path / "model.gguf").load(device=torch.device("meta"), dtype=torch.float32)
    assert quantization_of(restored) is None
    if model.native is not None:
        decoded = torch.cat([model.native.feed([token], cache, 1) for token in ids])
        torch.testing.assert_close(decoded, expected, atol=1e-4, rtol=1e-4)


def rewrite(file: Path, other: Path, tensors: dict[str, Tensor], changed: dict[str, Any]) -> None:
    """Write ``other``, like ``file``, but with these tensors, and with ``changed`` metadata (None: without it)."""
    import gguf

    reader = gguf.GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(other, architecture)
    for field in reader.fields.values():
        name = field.name.removeprefix(f"{architecture}.")
        if name != field.name and name not in changed:
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=field.types[-1])
    for name, value in changed.items():
        if value is not None:
            writer.add_uint32(f"{architecture}.{name}", value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors_of(file: Path) -> dict[str, Tensor]:
    """The tensors of a file of floats, as the package ``gguf`` reads them."""
    import gguf

    return {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in gguf.GGUFReader(file).tensors}


@pytest.mark.parametrize("old", [True, False])
def test_files_of_old_and_new_converters(old: bool, tmp_path: Path) -> None:
    """Old ones have the row of a shared expert's gate as a vector; new ones may have gates and ups in one tensor."""
    folder = write_model(tmp_path / "model", "qwen2_moe")
    write_gguf(folder, tmp_path / "theirs.gguf")
    tensors = tensors_of(tmp_path / "theirs.gguf")
    for name in list(tensors):
        if old and name.endswith("ffn_gate_inp_shexp.weight"):
            tensors[name] = tensors[name].flatten()
        if not old and name.endswith("ffn_gate_exps.weight"):
            both = (tensors.pop(name), tensors.pop(name.replace("gate", "up")))
            tensors[name.replace("gate", "gate_up")] = torch.cat(both, dim=1)
    rewrite(tmp_path / "theirs.gguf", tmp_path / "other.gguf", tensors, {})
    assert torch.equal(logits_of(tmp_path / "other.gguf"), logits_of(tmp_path / "theirs.gguf"))


@pytest.mark.parametrize("case", ["deepseek_v3", "deepseek_v2"])
def test_old_files_have_the_keys_and_values_of_all_heads_in_one_matrix(case: str, tmp_path: Path) -> None:
    """And no numbers of groups, and no function of scores."""
    folder = write_model(tmp_path / "model", case, n_group=1, topk_group=1)
    with replacing(tmp_path / "new.gguf") as out:
        GgufExport(Checkpoint.read(folder), "F32").write(out, {})
    tensors = tensors_of(tmp_path / "new.gguf")
    for layer in ("blk.0.", "blk.1."):
        keys, values = tensors.pop(f"{layer}attn_k_b.weight"), tensors.pop(f"{layer}attn_v_b.weight")
        assert (keys.shape, values.shape) == ((4, 24, 20), (4, 12, 24))
        tensors[f"{layer}attn_kv_b.weight"] = torch.cat((keys.transpose(1, 2), values), dim=1).flatten(0, 1)
    sizes = {"key_length": 36, "value_length": 12, "head_count_kv": 4, "key_length_mla": None, "value_length_mla": None}
    changed = {f"attention.{name}": size for name, size in sizes.items()}
    changed |= dict.fromkeys(("expert_group_count", "expert_group_used_count", "expert_gating_func"))
    rewrite(tmp_path / "new.gguf", tmp_path / "old.gguf", tensors, changed)
    assert Checkpoint.read(tmp_path / "old.gguf").config == Checkpoint.read(tmp_path / "new.gguf").config
    with replacing(tmp_path / "again.gguf") as out:
        GgufExport(Checkpoint.read(tmp_path / "old.gguf"), "F32").write(out, {})
    for file in ("old.gguf", "again.gguf"):
        torch.testing.assert_close(logits_of(tmp_path / file), logits_of(folder), atol=1e-4, rtol=1e-5)


def test_the_tensors_of_a_layer_for_several_tokens_at_once_are_dropped(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "glm4_moe_lite")
    with replacing(tmp_path / "plain.gguf") as out:
        GgufExport(Checkpoint.read(folder), "F32").write(out, {})
    tensors = tensors_of(tmp_path / "plain.gguf")
    tensors |= {name.replace(".1.", ".2."): tensor for name, tensor in tensors.items() if name.startswith("blk.1.")}
    tensors |= {"blk.2.nextn.eh_proj.weight": torch.zeros(64, 128)}
    rewrite(tmp_path / "plain.gguf", tmp_path / "more.gguf", tensors, {"block_count": 3, "nextn_predict_layers": 1})
    weights, config, _ = Checkpoint.read(tmp_path / "more.gguf").locate()
    assert (config.num_hidden_layers, weights.unused) == (2, ())
    with replacing(tmp_path / "again.gguf") as out:
        planned = GgufExport(Checkpoint.read(tmp_path / "more.gguf"), "F32")
        planned.write(out, {})
    assert planned.metadata["deepseek2.block_count"] == 2
    for file in ("more.gguf", "again.gguf"):
        assert torch.equal(logits_of(tmp_path / file), logits_of(tmp_path / "plain.gguf"))
    rewrite(tmp_path / "plain.gguf", tmp_path / "odd.gguf", tensors, {})
    assert Checkpoint.read(tmp_path / "odd.gguf").locate()[0].unused


def test_old_files_of_qwen3_next_have_the_inputs_of_a_key_head_together(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "qwen3_next")
    write_gguf(folder, tmp_path / "new.gguf")
    tensors, stored = tensors_of(tmp_path / "new.gguf"), load_file(folder / "model.safetensors")
    for layer in (0, 2):
        del tensors[f"blk.{layer}.attn_qkv.weight"], tensors[f"blk.{layer}.attn_gate.weight"]
        tensors[f"blk.{layer}.ssm_in.weight"] = stored[f"model.layers.{layer}.linear_attn.in_proj_qkvz.weight"]
    rewrite(tmp_path / "new.gguf", tmp_path / "old.gguf", tensors, {})
    torch.testing.assert_close(logits_of(tmp_path / "old.gguf"), logits_of(folder), atol=1e-4, rtol=1e-5)


def test_layers_for_several_tokens_at_once_are_not_read(tmp_path: Path) -> None:
    """They follow the others. Old files do not say which layers are recurrent: three of four are."""
    raw = DELTA_NET | {"layer_types": [*["linear_attention"] * 3, "full_attention"], "num_hidden_layers": 4}
    folder = write_model(tmp_path / "model", "qwen3_5_text", **raw)
    config = json.loads((folder / "config.json").read_text())
    shapes = {"token_embd.weight": (67, 64)}
    metadata = metadata_of(FAMILIES["qwen3_5_text"].parse(config))
    del metadata["qwen35.attention.recurrent_layers"]
    metadata |= {"qwen35.block_count": 5, "qwen35.nextn_predict_layers": 1}
    kinds = described(Contents(metadata, shapes, {}.__getitem__))["layer_types"]
    assert kinds == raw["layer_types"]


def test_a_split_model_opens_by_its_first_part(tmp_path: Path) -> None:
    import gguf

    folder = write_model(tmp_path / "model", "llama")
    write_gguf(folder, tmp_path / "whole.gguf")
    reader = gguf.GGUFReader(tmp_path / "whole.gguf")
    for part in (1, 2):
        writer = gguf.GGUFWriter(tmp_path / f"m-{part:05}-of-00002.gguf", "llama")
        writer.add_uint16("split.count", 2)
        for field in reader.fields.values() if part == 1 else ():
            if field.name.startswith(("llama.", "tokenizer.")):
                writer.add_key_value(field.name, field.contents(), field.types[0])
        for tensor in reader.tensors[part - 1 :: 2]:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    first, second = (tmp_path / f"m-{part:05}-of-00002.gguf" for part in (1, 2))
    assert torch.equal(logits_of(first), logits_of(folder))
    with pytest.raises(LlmcliError, match="is part 2 of 2"):
        Checkpoint.read(second)
    second.unlink()
    with pytest.raises(LlmcliError, match=r"has 2 parts, but m-00002-of-00002\.gguf is missing"):
        Checkpoint.read(first)


def test_errors_name_the_file_and_what_is_wrong(tmp_path: Path) -> None:
    import gguf

    def error(changed: dict[str, Any], architecture: str = "llama") -> str:
        writer = gguf.GGUFWriter(tmp_path / "bad.gguf", architecture)
        values = {"embedding_length": 4, "feed_forward_length": 4, "block_count": 1, "context_length": 8}
        values |= {"attention.head_count": 1, **changed}
        for key, value in values.items():
            add = writer.add_string if isinstance(value, str) else writer.add_uint32
            add(key if key.startswith("general.") else f"{architecture}.{key}", value)
        writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
        writer.add_tensor("token_embd.weight", torch.zeros(3, 4).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(LlmcliError) as raised:
            Checkpoint.read(tmp_path / "bad.gguf").load(device=CPU)
        assert raised.value.message.startswith(str(tmp_path / "bad.gguf"))
        assert "config.json" not in str(raised.value)
        return str(raised.value)

    assert "the architecture 'bert' is not supported (supported: llama, qwen2" in error({}, "bert")
    assert "the file holds a LoRA adapter, not a model" in error({"general.type": "adapter"})
    assert "the file holds an encoder of images or sound" in error({"general.type": "mmproj"}, "clip")
    assert "embedding_length is 'x', not a whole number" in error({"embedding_length": "x"})
    assert "the weights do not match the metadata, which has 1 layers, but the weights have 0; tensors " in error({})


@pytest.mark.skipif("LLMCLI_REAL_MODELS" not in os.environ, reason="needs LLMCLI_REAL_MODELS")
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_a_real_file_restores_to_what_gguf_restores(name: str) -> None:
    from gguf import GGUFReader

    path = Path(os.environ["LLMCLI_REAL_MODELS"]) / f"{name}.gguf"
    weights, _, rules = Checkpoint.read(path).locate()
    reader = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    for rule in rules[:: len(rules) // 40]:
        for source in rule.sources:
            expected = dequantize(reader[source.name].data, reader[source.name].tensor_type)
            assert torch.equal(
                weights.whole(source), torch.from_numpy(expected.copy()).view(weights.whole(source).shape)
            )


@pytest.mark.skipif("LLMCLI_REAL_MODELS" not in os.environ, reason="needs LLMCLI_REAL_MODELS")
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_a_real_file_writes_the_text_that_transformers_writes(name: str) -> None:
    """In float32; transformers restores all weights with the package gguf."""
    from transformers import AutoModelForCausalLM

    path = Path(os.environ["LLMCLI_REAL_MODELS"]) / f"{name}.gguf"
    loaded = load(path, dtype="float32")
    ids = loaded.prompt_ids("The capital of France is")
    greedy = Sampler([Temperature(0.0)], seed=0)
    ours = [step.token for step in steps(loaded.model, ids, sampler=greedy, max_new_tokens=64)]
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    settings: dict[str, Any] = {"max_new_tokens": 64, "min_new_tokens": 64, "eos_token_id": None}
    written = theirs.generate(torch.tensor([ids]), do_sample=False, repetition_penalty=1.0, **settings)
    assert ours == written[0, len(ids) :].tolist()


def test_metadata_becomes_the_config_that_the_folder_has(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "gemma2")
    write_gguf(folder, tmp_path / "model.gguf")
    assert Checkpoint.read(tmp_path / "model.gguf").config == Checkpoint.read(folder).config
    assert json.loads(json.dumps(Checkpoint.read(tmp_path / "model.gguf").raw))["sliding_window"] == 8
