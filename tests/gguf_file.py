"""Write a model folder as a GGUF file, as llama.cpp's converter does: the names are from the package ``gguf``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# model_type -> the architecture, and whether the converter reorders the rows of q and k for rotation by adjacent pairs.
ARCHITECTURES = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "mixtral": ("llama", True),
    "smollm3": ("smollm3", True),
    "granite": ("granite", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
    "qwen3_moe": ("qwen3moe", False),
    "qwen2_moe": ("qwen2moe", False),
    "gemma2": ("gemma2", False),
    "gemma3_text": ("gemma3", False),
    "phi": ("phi2", False),
    "phi3": ("phi3", False),
    "olmo2": ("olmo2", False),
    "olmo3": ("olmo2", False),
    "olmoe": ("olmoe", False),
    "gpt2": ("gpt2", False),
    "gpt_neox": ("gptneox", False),
    "starcoder2": ("starcoder2", False),
    "stablelm": ("stablelm", False),
    "cohere": ("command-r", False),
    "cohere2": ("cohere2", False),
    "gpt_oss": ("gpt-oss", False),
    "seed_oss": ("seed_oss", False),
    "arcee": ("arcee", True),
    "ernie4_5": ("ernie4_5", False),
    "glm4": ("glm4", False),
    "hunyuan_v1_dense": ("hunyuan-dense", False),
    "lfm2": ("lfm2", False),
    "lfm2_moe": ("lfm2moe", False),
    "qwen3_5_text": ("qwen35", False),
    "qwen3_5_moe_text": ("qwen35moe", False),
    "qwen3_next": ("qwen3next", False),
    "granitemoehybrid": ("granitehybrid", True),
}
Stored = Callable[[str, Tensor], str]  # from a GGUF name and the tensor to the name of a ggml type


def write_gguf(folder: Path, file: Path, stored: Stored = lambda name, tensor: "F32") -> None:
    """Write the model in ``folder`` to ``file``, with its tokenizer if it has one.

    ``stored`` chooses the types of the tensors.
    """
    import gguf
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture, paired = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(file, architecture)
    _add_config(writer, config)
    if (folder / "tokenizer.json").is_file():
        _add_tokenizer(writer, folder, config)
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    loaded = load_file(folder / "model.safetensors")
    tensors = _merged(dict(_divided(dict(_recurrent(config, loaded)))))
    for name, tensor in _factors(config).items():
        writer.add_tensor(name, tensor.numpy())
    for name, tensor in tensors.items():
        tensor = tensor.float()
        heads = config["num_attention_heads"] if ".q_proj" in name else config.get("num_key_value_heads")
        if paired and (".q_proj" in name or ".k_proj" in name):  # llama.cpp rotates adjacent pairs
            tensor = tensor.view(heads, 2, tensor.shape[0] // heads // 2, -1).transpose(1, 2).reshape(tensor.shape)
        if architecture == "gpt2" and ".c_" in name and name.endswith(".weight"):
            tensor = tensor.T
        if "query_key_value" in name:  # by head in the folder
            rows = tensor.view(config["num_attention_heads"], 3, -1, *tensor.shape[1:])
            tensor = rows.transpose(0, 1).reshape(tensor.shape)
        adds_one = architecture.startswith(("gemma", "qwen35", "qwen3next")) and not name.endswith("ssm_norm.weight")
        if adds_one and name.endswith("norm.weight"):
            tensor = tensor + 1
        if architecture == "lfm2moe" and ".experts." in name:
            name = name.removeprefix("model.")
        target = name if name.startswith("blk.") else names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        kind_of = gguf.GGMLQuantizationType[stored(target, tensor)]
        data = gguf.quants.quantize(tensor.contiguous().numpy(), kind_of)
        writer.add_tensor(target, data, raw_dtype=kind_of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _divided(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors, with gpt-oss's experts by outputs, gate and up apart."""
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.*\.experts\.)(gate_up|down)_proj(_bias)?", name)
        if match is None:
            yield f"{name}.weight" if name.endswith("sinks") else name, tensor
            continue
        end, outputs = (".bias", tensor) if match[3] else (".weight", tensor.transpose(1, 2))
        parts = {"gate": outputs[:, ::2], "up": outputs[:, 1::2]} if match[2] == "gate_up" else {"down": outputs}
        for part, values in parts.items():
            yield f"{match[1]}{part}_proj{end}", values.contiguous()


def _recurrent(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors; those of recurrent layers as the converter changes them, some under their final names."""
    for name, tensor in tensors.items():
        layer, part = re.sub(r".*layers\.(\d+)\..*", r"blk.\1.", name), name.partition(".linear_attn.")[2]
        if "conv.conv." in name or name.endswith("conv1d.weight"):
            tensor = tensor.squeeze(1)
        if name.endswith("A_log"):
            tensor = -tensor.exp()
        if part:
            yield from ((layer + new, changed) for new, changed in _delta_net(config, part, tensor))
        elif ".mamba." in name and name.endswith(("A_log", ".D")):
            yield layer + ("ssm_a" if name.endswith("A_log") else "ssm_d"), tensor[:, None]
        elif name.endswith("mamba.norm.weight"):
            yield name, tensor.view(config["mamba_n_groups"], -1)
        elif "_linear.weight" in name and "input" in name:
            halves = tensor.chunk(2, dim=-2)
            kind = "shexp" if config["num_local_experts"] else ""
            kind = "exps" if "sparse_moe" in name else kind
            for half, values in zip(("gate", "up"), halves, strict=True):
                yield f"{layer}ffn_{half}_{kind}".rstrip("_") + ".weight", values.contiguous()
        elif "shared_mlp.output" in name:
            yield layer + ("ffn_down_shexp.weight" if config["num_local_experts"] else "ffn_down.weight"), tensor
        else:
            yield name.replace("expert_bias", "expert_bias.bias").replace("dt_bias", "dt_proj.bias"), tensor


def _delta_net(config: Mapping[str, Any], part: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor of a gated delta net: Qwen3-Next's inputs are divided, the value heads of Qwen 3.5 reordered."""
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    size, shared = config["linear_key_head_dim"], values // keys
    is_next = config["model_type"] == "qwen3_next"

    def by_turns(rows: Tensor) -> Tensor:
        return rows if is_next else rows.view(keys, shared, -1).transpose(0, 1).reshape(rows.shape)

    if part == "in_proj_qkvz.weight":
        heads = tensor.view(keys, (2 + 2 * shared) * size, -1)
        q, k, v, z = (x.flatten(0, 1) for x in heads.split([size, size, shared * size, shared * size], dim=1))
        yield from {"attn_qkv.weight": torch.cat((q, k, v)), "attn_gate.weight": z.contiguous()}.items()
    elif part in ("in_proj_qkv.weight", "conv1d.weight"):
        before = 2 * keys * size
        name = "attn_qkv.weight" if "qkv" in part else "ssm_conv1d.weight"
        yield name, torch.cat((tensor[:before], by_turns(tensor[before:])))
    elif part == "out_proj.weight":
        yield "ssm_out.weight", by_turns(tensor.T.contiguous()).T.contiguous()
    elif part == "norm.weight":
        yield "ssm_norm.weight", tensor
    else:
        names = {"z": "attn_gate", "b": "ssm_beta", "a": "ssm_alpha", "ba": "ssm_ba"}
        names = {f"in_proj_{old}.weight": f"{new}.weight" for old, new in names.items()}
        names |= {"dt_bias": "ssm_dt.bias", "A_log": "ssm_a"}
        yield names[part], tensor if part == "in_proj_ba.weight" else by_turns(tensor)


def _merged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with those of all experts of a layer stacked."""
    merged: dict[str, Any] = {}
    numbered = {name: re.fullmatch(r"(.*\.(?:experts|norms)\.)(\d+)\.(.*)", name) for name in tensors}
    for name, tensor in tensors.items():
        match = numbered[name]
        if match is None:
            merged[name] = tensor
        else:
            merged.setdefault(f"{match[1].replace('.norms', '')}{match[3]}", {})[int(match[2])] = tensor
    return {
        name: torch.stack([value[number] for number in sorted(value)]) if isinstance(value, dict) else value
        for name, value in merged.items()
    }


def _add_config(writer: Any, config: Mapping[str, Any]) -> None:
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    if config["model_type"] != "qwen3_5_moe_text":  # which has no such number
        writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    if config["model_type"].startswith(("lfm2", "granitemoehybrid")):
        attending = [kind.endswith("attention") for kind in config["layer_types"]]
        writer.add_head_count_kv([config["num_key_value_heads"] * each for each in attending])
    else:
        writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_key_length(size)
    writer.add_value_length(size)
    if config["model_type"] not in ("gpt2", "granitemoehybrid"):
        writer.add_rope_dimension_count(int(size * config.get("partial_rotary_factor", 1.0)))
        alpha = (config.get("rope_scaling") or {}).get("alpha", 1.0)
        writer.add_rope_freq_base(config["rope_theta"] * alpha ** (size / (size - 2)))
    if "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    for key, add in {
        "sliding_window": writer.add_sliding_window,
        "attn_logit_softcapping": writer.add_attn_logit_softcapping,
        "final_logit_softcapping": writer.add_final_logit_softcapping,
        "num_experts": writer.add_expert_count,
        "num_local_experts": writer.add_expert_count,
        "num_experts_per_tok": writer.add_expert_used_count,
        "moe_intermediate_size": writer.add_expert_feed_forward_length,
        "attention_multiplier": writer.add_attention_scale,
        "embedding_multiplier": writer.add_embedding_scale,
        "residual_multiplier": writer.add_residual_scale,
        "logits_scaling": writer.add_logit_scale,
        "logit_scale": writer.add_logit_scale,
        "use_parallel_residual": writer.add_parallel_residual,
        "layer_norm_epsilon": writer.add_layer_norm_eps,
        "layer_norm_eps": writer.add_layer_norm_eps,
        "norm_epsilon": writer.add_layer_norm_eps,
        "norm_eps": writer.add_layer_norm_rms_eps,
        "conv_L_cache": writer.add_shortconv_l_cache,
        "num_dense_layers": writer.add_leading_dense_block_count,
        "shared_expert_intermediate_size": writer.add_expert_shared_feed_forward_length,
        "linear_conv_kernel_dim": writer.add_ssm_conv_kernel,
        "linear_key_head_dim": writer.add_ssm_state_size,
        "linear_num_key_heads": writer.add_ssm_group_count,
        "linear_num_value_heads": writer.add_ssm_time_step_rank,
        "mamba_d_conv": writer.add_ssm_conv_kernel,
        "mamba_d_state": writer.add_ssm_state_size,
        "mamba_n_groups": writer.add_ssm_group_count,
        "mamba_n_heads": writer.add_ssm_time_step_rank,
    }.items():
        if config.get(key) is not None:
            add(config[key])
    _add_recurrent(writer, config)
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf_scaling(scaling["rope_type"]))
        writer.add_rope_scaling_factor(scaling["factor"])
    if "original_max_position_embeddings" in scaling:
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


def _add_recurrent(writer: Any, config: Mapping[str, Any]) -> None:
    """What the metadata of models with recurrent layers has besides."""
    import gguf

    if config["model_type"] == "lfm2_moe":
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if config["model_type"] == "granitemoehybrid":
        writer.add_ssm_inner_size(2 * config["hidden_size"])
        writer.add_rope_scaling_finetuned(False)
        if config["num_local_experts"]:
            writer.add_expert_shared_feed_forward_length(config["shared_intermediate_size"])
    if config["model_type"].startswith(("qwen3_5", "qwen3_next")):
        writer.add_ssm_inner_size(config["linear_value_head_dim"] * config["linear_num_value_heads"])
        recurrent = [kind == "linear_attention" for kind in config["layer_types"]]
        writer.add_array(f"{ARCHITECTURES[config['model_type']][0]}.attention.recurrent_layers", recurrent)
        writer.add_full_attention_interval(4)
    if config["model_type"].startswith("qwen3_5"):
        writer.add_rope_dimension_sections([11, 11, 10, 0])


def gguf_scaling(kind: str) -> Any:
    """gguf's constant for a type of rope scaling."""
    import gguf

    return gguf.RopeScalingType(kind)


def _factors(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the angles of each rotary pair are divided by, where the file has it as a tensor."""
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "longrope":
        factors = {"rope_factors_long": "long_factor", "rope_factors_short": "short_factor"}
        return {f"{name}.weight": torch.tensor(scaling[key]) for name, key in factors.items()}
    if scaling.get("rope_type") == "llama3":
        return {"rope_freqs.weight": _llama3_factors(config, scaling)}
    return {}


def _llama3_factors(config: Mapping[str, Any], scaling: Mapping[str, Any]) -> Tensor:
    """Llama 3.1's scaling as factors: 1 for fast pairs, ``factor`` for slow ones, and in between what interpolates."""
    size, context = config["head_dim"], scaling["original_max_position_embeddings"]
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    factors = []
    for pair in range(size // 2):
        turns = context * config["rope_theta"] ** (-2 * pair / size) / (2 * torch.pi)
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(factors)


def _add_tokenizer(writer: Any, folder: Path, config: Mapping[str, Any]) -> None:
    """A byte-level BPE tokenizer, and the chat template if there is one."""
    import gguf

    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    tokens = {id: token for token, id in tokenizer["model"]["vocab"].items()} | special
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([tokens[id] for id in range(config["vocab_size"])])
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if id in special else normal for id in range(config["vocab_size"])])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_add_bos_token(True)
    template = folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text(encoding="utf-8"))
