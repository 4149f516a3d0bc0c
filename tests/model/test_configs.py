"""config.json -> ModelConfig, against transformers: omitted values, old key names, and real files."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, Lfm2Config, PretrainedConfig
from transformers.models.lfm2.modeling_lfm2 import Lfm2MLP

from llmcli.errors import LlmcliError
from llmcli.model.config import ModelConfig, RopeConfig
from llmcli.model.families import FAMILIES, family_of
from llmcli.model.transformer import Transformer
from llmcli.storage.checkpoint import Checkpoint
from tests.tiny import learned

REAL = Path(__file__).parents[3] / "shared" / "checkpoints" / "configs"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real config files are not available")

TEXT_FAMILIES = [name for name, family in FAMILIES.items() if not family.text_only]
ACTIVATIONS = {
    "quick_gelu": "gelu_sigmoid",
    "xielu": "xielu",
    "relu2": "relu_squared",
    "silu": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


LAYERS_KEY = {
    "gpt2": "n_layer",
    "gpt_neo": "num_layers",
    "gptj": "n_layer",
    "bloom": "n_layer",
}  # others: num_hidden_layers

# What a family's file must say: its default is not supported, or transformers cannot build it.
NECESSARY: dict[str, dict[str, Any]] = {
    "lfm2_moe": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "hunyuan_v1_dense": {"head_dim": 128},
    "nemotron_h": {"layers_block_type": ["linear_attention", "full_attention", "moe"]},
}
WITHOUT_POSITIONS = ("mamba2", "nemotron_h")


def parse(raw: dict[str, Any]) -> ModelConfig:
    return family_of(raw).parse(raw)


def transformers_config(raw: dict[str, Any]) -> PretrainedConfig:
    """transformers' config for the same file; for a multimodal model, that of its text model."""
    config = CONFIG_MAPPING[raw["model_type"]].from_dict(copy.deepcopy(raw))
    return getattr(config, "text_config", config)


def first(config: PretrainedConfig, *names: str) -> Any:
    """The first of the named attributes that the config has."""
    return next(getattr(config, name) for name in names if hasattr(config, name))


def windows(config: PretrainedConfig) -> list[int | None]:
    """The window of each layer, by the rules of transformers' modeling code; None for full attention."""
    layers, window = config.num_hidden_layers, getattr(config, "sliding_window", getattr(config, "window_size", None))
    types = window_types(config)
    if types is None:
        types = ["full_attention" if window is None else "sliding_attention"] * layers
    if "chunked_attention" in types:
        window = config.attention_chunk_size
    return [window if layer_type in ("sliding_attention", "chunked_attention") else None for layer_type in types]


def adjusted_size(config: PretrainedConfig) -> int | None:
    """The width of LFM2's MLP, which differs from its config's."""
    if not isinstance(config, Lfm2Config):
        return None
    with torch.device("meta"):
        return Lfm2MLP(config).w1.out_features


def window_types(config: PretrainedConfig) -> list[str] | None:
    """transformers' ``layer_types``, which GPT-Neo spells differently."""
    if config.model_type == "gpt_neo":
        return ["sliding_attention" if kind == "local" else "full_attention" for kind in config.attention_layers]
    return getattr(config, "layer_types", None)


def norm_eps(config: PretrainedConfig) -> float:
    names = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
    return next((getattr(config, name) for name in names if hasattr(config, name)), 1e-5)  # fixed in the modeling code


def inner_size(config: PretrainedConfig) -> int:
    """The width of the MLP, by the rules of transformers' modeling code."""
    names = (
        "shared_intermediate_size",
        "intermediate_size_mlp",
        "intermediate_size",
        "n_inner",
        "ffn_dim",
        "ffn_hidden_size",
        "moe_intermediate_size",
    )
    stated = next((getattr(config, name) for name in names if getattr(config, name, None)), 4 * config.hidden_size)
    return adjusted_size(config) or stated


def activation(config: PretrainedConfig) -> str:
    if config.model_type == "gpt_oss":
        return "quick_gelu"  # whatever the file says
    if config.model_type == "bloom":
        return "gelu_pytorch_tanh"  # fixed in the modeling code
    names = ("hidden_act", "mlp_hidden_act", "activation_function", "activation")
    return next((getattr(config, name) for name in names if hasattr(config, name)), "silu")


def unrotated(config: PretrainedConfig) -> frozenset[int]:
    """The layers without rotary positions, by the rules of transformers' modeling code."""
    if config.model_type in ("cohere2", "exaone4") and config.sliding_window is not None:
        return frozenset(layer for layer, kind in enumerate(config.layer_types) if kind == "full_attention")
    marks = getattr(config, "no_rope_layers", None) or []
    return frozenset(layer for layer, rotated in enumerate(marks) if not rotated)


def global_value(config: PretrainedConfig, name: str) -> Any:
    """The value for layers without one of their own, or None; transformers otherwise refuses to name it."""
    config.allow_global_per_layer_attribute_access = True
    return getattr(config, name, None)


def expected(config: PretrainedConfig) -> dict[str, Any]:
    """The values of transformers' config that ``ModelConfig`` has too, under its names."""
    eos, heads = config.eos_token_id, getattr(config, "num_attention_heads", 1)
    values = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": inner_size(config),
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": global_value(config, "num_key_value_heads") or heads,
        "head_dim": global_value(config, "head_dim") or config.hidden_size // heads,
        "max_position_embeddings": getattr(config, "max_position_embeddings", 2**20),
        "tie_word_embeddings": config.tie_word_embeddings,
        "norm_eps": norm_eps(config),
        "activation": ACTIVATIONS[getattr(config, "hidden_activation", None) or activation(config)],
        "bos_token_id": config.bos_token_id,
        "eos_token_ids": () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
        "attention_softcap": getattr(config, "attn_logit_softcapping", None),
        "logit_softcap": getattr(config, "final_logit_softcapping", None),
        "residual_scale": getattr(config, "residual_multiplier", 1.0),
        "layers_without_rope": unrotated(config),
    }
    if config.model_type == "llama4_text":
        tuned = config.attn_temperature_tuning
        values |= {"query_scale_beta": config.attn_scale if tuned else 0.0, "floor_scale": config.floor_scale}
    if config.model_type == "mamba2":  # it has neither attention nor an MLP
        values |= {"num_key_value_heads": 1, "head_dim": 1, "intermediate_size": 1}
    if config.model_type == "bloom":
        values["max_position_embeddings"] = 2048  # of training: there is no limit
    if config.model_type == "falcon" and not config.new_decoder_architecture:
        values["num_key_value_heads"] = 1 if config.multi_query else heads
    elif config.model_type == "falcon":
        values["num_key_value_heads"] = config.num_kv_heads
    return values


def expected_scales(config: PretrainedConfig) -> tuple[float, float, float]:
    """attention_scale, embedding_scale and logit_scale, from transformers' config."""
    if config.model_type == "mamba2":
        return 1.0, 1.0, 1.0
    head_dim = global_value(config, "head_dim") or config.hidden_size // config.num_attention_heads
    if config.model_type == "gemma4_text":
        return 1.0, config.hidden_size**0.5, 1.0
    if config.model_type.startswith("gemma"):
        return getattr(config, "query_pre_attn_scalar", config.head_dim) ** -0.5, config.hidden_size**0.5, 1.0
    if config.model_type == "gpt_neo":
        return 1.0, 1.0, 1.0
    if config.model_type == "falcon_h1":
        scores = head_dim**-0.5 * config.key_multiplier * config.attention_in_multiplier**2
        return scores, config.embedding_multiplier, config.lm_head_multiplier
    if hasattr(config, "kv_lora_rank"):
        rope, share = config.rope_parameters, config.rope_parameters.get("mscale_all_dim", 0)
        longer = 1 + 0.1 * share * math.log(rope["factor"]) if share else 1.0
        return longer**2 * config.qk_head_dim**-0.5, 1.0, 1.0
    if config.model_type.startswith("granite"):
        return config.attention_multiplier, config.embedding_multiplier, 1 / config.logits_scaling
    return head_dim**-0.5, 1.0, getattr(config, "logit_scale", 1.0)


def assert_same_rope(ours: RopeConfig | None, theirs: dict[str, Any]) -> None:
    assert ours is not None
    names = {"rope_theta": "theta"}
    # The last four are part of attention_factor, of the queries' scale, and of theta.
    ignored = {"type", "max_position_embeddings", "mscale", "mscale_all_dim", "llama_4_scaling_beta", "alpha"}
    for key, value in theirs.items():
        if key not in ignored and value is not None:
            found = getattr(ours, names.get(key, key))
            assert found == (tuple(value) if isinstance(value, list) else value), key
    assert ours.partial_rotary_factor == theirs.get("partial_rotary_factor", 1.0)


def assert_same_layers(ours: ModelConfig, theirs: PretrainedConfig) -> None:
    """What each layer of Gemma 4 has of its own is what transformers gives it."""
    assert theirs.layer_types[-1] == "full_attention"
    for layer, mode in enumerate(theirs.kv_sharing_modes):
        one = theirs.per_layer_config[layer]
        assert (ours.head_size(layer), ours.kv_heads(layer)) == (one.head_dim, one.num_key_value_heads)
        assert ours.keeps_kv(layer) == (mode != "reuse")
        if mode == "reuse":
            stores = [n for n, other in enumerate(theirs.kv_sharing_modes) if other == "store"]
            assert theirs.layer_types[ours.kv_layer(layer)] == theirs.layer_types[layer]
            assert ours.kv_layer(layer) in stores
    assert (ours.hidden_size_per_layer_input or 0) == theirs.hidden_size_per_layer_input
    if ours.hidden_size_per_layer_input:
        assert ours.vocab_size_per_layer_input == theirs.vocab_size_per_layer_input


def config_without_positions(config: PretrainedConfig) -> bool:
    """Granite 4 has rope parameters that most of its models do not use."""
    return config.model_type == "granitemoehybrid" and config.position_embedding_type != "rope"


def assert_same(ours: ModelConfig, theirs: PretrainedConfig) -> None:
    wanted = expected(theirs)
    if ours.rope is not None and ours.rope.rope_type in ("dynamic", "yarn"):
        assert ours.max_position_embeddings >= wanted.pop("max_position_embeddings")
    assert {name: getattr(ours, name) for name in wanted} == wanted
    scale = ours.head_dim**-0.5 if ours.attention_scale is None else ours.attention_scale
    assert (scale, ours.embedding_scale, ours.logit_scale) == pytest.approx(expected_scales(theirs), rel=1e-12)
    layers = range(ours.num_hidden_layers)
    assert [ours.sliding_window if ours.layer_type(i) == "sliding_attention" else None for i in layers] == windows(
        theirs
    )
    rope = getattr(theirs, "rope_parameters", None)
    if theirs.model_type == "gptj":
        assert ours.rope is not None
        assert (ours.rope.theta, ours.rope.rotated(ours.head_dim)) == (10000.0, theirs.rotary_dim)
    elif theirs.model_type == "bloom" or getattr(theirs, "alibi", False):
        assert (ours.position, ours.rope) == ("alibi", None)
    elif rope is None:
        assert (ours.position, ours.rope) == ("none" if theirs.model_type in WITHOUT_POSITIONS else "learned", None)
    elif config_without_positions(theirs):
        assert (ours.position, ours.rope) == ("none", None)
    elif "full_attention" in rope:
        assert_same_rope(ours.rope, rope["full_attention"])
        assert_same_rope(ours.local_rope, rope["sliding_attention"])
    else:
        assert_same_rope(ours.rope, rope)
        assert ours.local_rope is None
    if theirs.model_type == "gemma4_text":
        assert_same_layers(ours, theirs)
    if ours.moe is not None:
        assert ours.moe.num_experts == first(theirs, "num_experts", "num_local_experts")
        assert ours.moe.num_experts_per_tok == first(theirs, "num_experts_per_tok", "top_k_experts")
        assert ours.moe.intermediate_size == first(theirs, "moe_intermediate_size", "intermediate_size")
        normalizes = theirs.model_type != "llama4_text"  # others that do not say it do
        assert ours.moe.normalize == getattr(theirs, "norm_topk_prob", normalizes)
        if theirs.model_type == "nemotron_h":
            assert [ours.is_moe(i) for i in layers] == [kind == "moe" for kind in theirs.layers_block_type]
            return
        if theirs.model_type == "llama4_text":
            assert [ours.is_moe(i) for i in layers] == [i in theirs.moe_layers for i in layers]
            return
        step, dense = getattr(theirs, "decoder_sparse_step", 1), getattr(theirs, "mlp_only_layers", [])
        first_dense = getattr(theirs, "num_dense_layers", getattr(theirs, "first_k_dense_replace", 0))
        dense = [*dense, *range(first_dense)]
        if hasattr(theirs, "mlp_layer_types"):
            dense = [layer for layer in layers if theirs.mlp_layer_types[layer] == "dense"]
        assert [ours.is_moe(i) for i in layers] == [i not in dense and (i + 1) % step == 0 for i in layers]


def count_parameters(config: ModelConfig) -> int:
    """The number of parameters, without allocating them; checks that each has a tensor rule."""
    with torch.device("meta"):
        model = Transformer(config)
    named = dict(model.named_parameters())
    assert {rule.target for rule in FAMILIES[config.model_type].rules(config)} == named.keys()
    return sum(parameter.numel() for parameter in named.values())


def count_transformers_parameters(config: PretrainedConfig) -> int:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for _, parameter in learned(model))


@pytest.mark.parametrize("model_type", TEXT_FAMILIES)
def test_omitted_values_default_to_those_of_transformers(model_type: str) -> None:
    raw = {"model_type": model_type} | NECESSARY.get(model_type, {})
    assert_same(parse(raw), transformers_config(raw))


@pytest.mark.parametrize("model_type", TEXT_FAMILIES)
def test_null_means_the_same_as_in_transformers(model_type: str) -> None:
    raw = {"model_type": model_type, "eos_token_id": None, "bos_token_id": None} | NECESSARY.get(model_type, {})
    raw |= {} if model_type in ("gpt2", "gemma4_text") else {"rope_scaling": None}
    assert_same(parse(raw), transformers_config(raw))


# In transformers, their scaling reads partial_rotary_factor, with which these models do not run.
SCALED_BY_DEFAULT = ("gpt_oss", "ministral3", "apertus")
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}
DEEPSEEK_YARN = {
    "type": "yarn",
    "factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "original_max_position_embeddings": 4096,
}
GPT_OSS_YARN = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}
FACTORS = {"short_factor": [1.0 + 0.01 * i for i in range(48)], "long_factor": [1.0 + i for i in range(48)]}
PHI_4_MINI = {"short_factor": [1.0] * 36, "long_factor": [2.0] * 36}
SMALL = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 80, "num_hidden_layers": 5, "vocab_size": 99}
FILES: dict[str, dict[str, Any]] = {
    "llama-linear": {"model_type": "llama", "rope_theta": 1e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama-dynamic": {"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "llama-llama3": {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": LLAMA3},
    "llama-yarn": {"model_type": "llama", "rope_scaling": {"type": "yarn", **YARN}, "max_position_embeddings": 32768},
    "llama-new": {"model_type": "llama", "rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
    "llama-both": {"model_type": "llama", "rope_theta": 9.0, "rope_parameters": {"rope_type": "default"}},
    "llama-no-kv-heads": {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": None},
    "llama-heads": {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "eos_token_id": [5, 6, 7]},
    "mistral-full": {"model_type": "mistral", "sliding_window": None},
    "mistral-head_dim": {"model_type": "mistral", "head_dim": None, "num_key_value_heads": 4},
    "mistral-nemo": {"model_type": "mistral", "head_dim": 128, "hidden_size": 5120, "sliding_window": None},
    "qwen2-unused-window": {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 1000},
    "qwen2-window": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 99, "max_window_layers": 3},
    "qwen2-window-default": {"model_type": "qwen2", "use_sliding_window": True},
    "qwen2-yarn": {"model_type": "qwen2", "rope_scaling": {"type": "yarn", **YARN}, "rope_theta": 1e6},
    "qwen3-small": {"model_type": "qwen3", **SMALL, "num_key_value_heads": 2},
    "qwen3-window": {"model_type": "qwen3", "use_sliding_window": True, "max_window_layers": 1, "attention_bias": True},
    "smollm3-marks": {"model_type": "smollm3", "num_hidden_layers": 5, "no_rope_layers": [1, 1, 0, 1, 0]},
    "smollm3-interval": {"model_type": "smollm3", "num_hidden_layers": 7, "no_rope_layer_interval": 3},
    "smollm3-window": {"model_type": "smollm3", "use_sliding_window": True, "sliding_window": 77},
    "smollm3-unused-window": {"model_type": "smollm3", "use_sliding_window": False, "sliding_window": 77},
    "gemma2-caps": {"model_type": "gemma2", "attn_logit_softcapping": None, "final_logit_softcapping": 12.5},
    "gemma2-scale": {"model_type": "gemma2", "query_pre_attn_scalar": 144, "hidden_size": 4608, "sliding_window": 512},
    "gemma3_text-pattern": {"model_type": "gemma3_text", "sliding_window_pattern": 4, "num_hidden_layers": 9},
    "gemma3_text-old": {
        "model_type": "gemma3_text",
        "rope_theta": 2e6,
        "rope_local_base_freq": 2e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "query_pre_attn_scalar": 168,
    },
    "gemma3_text-new": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 3e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
        },
    },
    "phi3-su": {
        "model_type": "phi3",
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "su", "original_max_position_embeddings": 4096, **FACTORS},
    },
    "phi3-yarn": {
        "model_type": "phi3",
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "yarn", **FACTORS},
    },
    "phi3-no-original": {
        "model_type": "phi3",
        "max_position_embeddings": 131072,
        "rope_scaling": {"type": "longrope", **FACTORS},
    },
    "phi4-mini": {
        "model_type": "phi3",
        "hidden_size": 2304,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {"type": "longrope", **PHI_4_MINI},
        "tie_word_embeddings": True,
    },
    "gpt2-inner": {"model_type": "gpt2", "n_inner": 100, "activation_function": "gelu", "tie_word_embeddings": False},
    "gpt2-sizes": {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 50, "n_ctx": 50},
    "gpt_neox-old": {"model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 5000},
    "gpt_neox-serial": {"model_type": "gpt_neox", "use_parallel_residual": False, "attention_bias": False},
    "olmo2-heads": {"model_type": "olmo2", "num_key_value_heads": 8, "attention_bias": True, "rope_theta": 5e5},
    "granite-multipliers": {
        "model_type": "granite",
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.015625,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
        "num_key_value_heads": 8,
    },
    "stablelm-half": {"model_type": "stablelm", "partial_rotary_factor": 0.5, "rope_theta": 1e5, "use_qkv_bias": True},
    "stablelm-normed": {
        "model_type": "stablelm",
        "qk_layernorm": True,
        "use_parallel_residual": True,
        **SMALL,
        "num_key_value_heads": 2,
    },
    "starcoder2-window": {
        "model_type": "starcoder2",
        "sliding_window": 4096,
        "use_bias": False,
        "rope_theta": 999999.0,
    },
    "cohere-normed": {"model_type": "cohere", "use_qk_norm": True, "logit_scale": 0.8333, "rope_theta": 8e6},
    "cohere-biases": {"model_type": "cohere", "attention_bias": True, "num_key_value_heads": 8},
    "mixtral-window": {
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "sliding_window": 4096,
    },
    "qwen3_moe-sparse": {
        "model_type": "qwen3_moe",
        "norm_topk_prob": True,
        "num_experts": 16,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
        "num_hidden_layers": 6,
        "attention_bias": True,
    },
    "qwen3_moe-window": {"model_type": "qwen3_moe", "use_sliding_window": True, "sliding_window": 100},
    "qwen3_moe-unused-window": {"model_type": "qwen3_moe", "sliding_window": 100, "head_dim": 128},
    "gpt_oss-20b": {
        "model_type": "gpt_oss",
        "num_hidden_layers": 24,
        "num_local_experts": 32,
        "rope_theta": 150000,
        "rope_scaling": {**GPT_OSS_YARN, "rope_type": "yarn"},
        "eos_token_id": 200002,
        "initial_context_length": 4096,
        "experts_per_token": 4,
    },
    "olmo3-7b": {
        "model_type": "olmo3",
        "vocab_size": 100278,
        "max_position_embeddings": 65536,
        "rope_theta": 500000,
        "rope_scaling": {
            "attention_factor": 1.2079441541679836,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "yarn",
        },
        "rms_norm_eps": 1e-6,
        "eos_token_id": 100257,
    },
    "ministral3-plain": {
        "model_type": "ministral3",
        "tie_word_embeddings": True,
        "sliding_window": 99,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e5, "llama_4_scaling_beta": 0.0},
    },
    "seed_oss-biases": {"model_type": "seed_oss", "attention_out_bias": True, "mlp_bias": True},
    "arcee-4.5b": {
        "model_type": "arcee",
        "vocab_size": 128004,
        "num_hidden_layers": 36,
        "num_attention_heads": 20,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "max_position_embeddings": 65536,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 20.0,
            "mscale": 1.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
        },
    },
    "nanochat-d32": {
        "model_type": "nanochat",
        "vocab_size": 65536,
        "hidden_size": 2048,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "rope_theta": 10000.0,
    },
    "cohere2-7b": {
        "model_type": "cohere2",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "logit_scale": 0.25,
        "rope_theta": 50000,
        "layer_switch": 4,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
        "max_position_embeddings": 8192,
    },
    "exaone4-full": {
        "model_type": "exaone4",
        "sliding_window": None,
        "num_hidden_layers": 3,
        "layer_types": ["full_attention"] * 3,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "glm4-9b": {"model_type": "glm4", "partial_rotary_factor": 0.5, "rope_theta": 10000.0, "rms_norm_eps": 1e-5},
    "ernie4_5-biases": {"model_type": "ernie4_5", "use_bias": True, "tie_word_embeddings": False, "head_dim": None},
    "hunyuan_v1_dense-biases": {
        "model_type": "hunyuan_v1_dense",
        "head_dim": 128,
        "attention_bias": True,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "apertus-8b": {"model_type": "apertus", "intermediate_size": 21504, "num_key_value_heads": 8, "eos_token_id": 68},
    "gpt_oss-plain": {
        "model_type": "gpt_oss",
        "attention_bias": False,
        "layer_types": None,
        "num_key_value_heads": 2,
        **SMALL,
        "num_experts": 5,
    },
    "qwen2_moe-sparse": {
        "model_type": "qwen2_moe",
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
        "moe_intermediate_size": 1000,
        "norm_topk_prob": True,
        "num_hidden_layers": 6,
        "qkv_bias": False,
        "shared_expert_intermediate_size": 4000,
        "use_sliding_window": True,
        "max_window_layers": 3,
        "sliding_window": 99,
    },
    "gemma-2b": {
        "model_type": "gemma",
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "hidden_act": "gelu",
    },
    "olmo-1b": {
        "model_type": "olmo",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "clip_qkv": None,
        "tie_word_embeddings": True,
    },
    "gpt_neo-125m": {
        "model_type": "gpt_neo",
        "hidden_size": 768,
        "num_layers": 12,
        "num_heads": 12,
        "attention_types": [[["global", "local"], 6]],
        "intermediate_size": None,
    },
    "opt-1.3b": {
        "model_type": "opt",
        "hidden_size": 2048,
        "ffn_dim": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "word_embed_proj_dim": 2048,
    },
    "qwen3_next-sparse": {
        "model_type": "qwen3_next",
        **SMALL,
        "num_key_value_heads": 2,
        "full_attention_interval": 2,
        "decoder_sparse_step": 2,
        "linear_num_key_heads": 2,
        "num_experts": 6,
        "num_experts_per_tok": 2,
    },
    "lfm2-8b-a1b": {
        "model_type": "lfm2_moe",
        "num_hidden_layers": 24,
        "layer_types": ["full_attention" if layer in (2, 6, 10, 14, 18, 21) else "conv" for layer in range(24)],
    },
    "granite4-h-tiny": {
        "model_type": "granitemoehybrid",
        "vocab_size": 100352,
        "hidden_size": 1536,
        "intermediate_size": 512,
        "shared_intermediate_size": 1024,
        "num_hidden_layers": 40,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "num_local_experts": 64,
        "num_experts_per_tok": 6,
        "mamba_n_heads": 48,
        "mamba_d_head": 64,
        "mamba_d_state": 128,
        "layer_types": ["attention" if layer % 10 == 5 else "mamba" for layer in range(40)],
        "position_embedding_type": "nope",
        "tie_word_embeddings": True,
    },
    "granitemoehybrid-dense": {"model_type": "granitemoehybrid", "num_local_experts": 0, "num_hidden_layers": 3},
    "lfm2_moe-unbiased": {
        "model_type": "lfm2_moe",
        "num_hidden_layers": 2,
        "layer_types": ["full_attention", "conv"],
        "num_dense_layers": 1,
        "use_expert_bias": False,
        "norm_topk_prob": False,
        "tie_embedding": False,
        "conv_bias": True,
    },
    "mamba2-130m": {
        "model_type": "mamba2",
        "hidden_size": 768,
        "num_hidden_layers": 24,
        "num_heads": 24,
        "n_groups": 1,
        "vocab_size": 50288,
        "tie_word_embeddings": True,
    },
    "mamba2-codestral-7b": {"model_type": "mamba2", "vocab_size": 32768},
    "falcon_h1-0.5b": {
        "model_type": "falcon_h1",
        "vocab_size": 32784,
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "mamba_d_ssm": 1536,
        "mamba_n_heads": 24,
        "mamba_d_head": 64,
        "mamba_d_state": 128,
        "mamba_rms_norm": False,
        "rope_theta": 1e11,
        "max_position_embeddings": 16384,
        "key_multiplier": 0.375,
        "attention_in_multiplier": 1.5,
        "embedding_multiplier": 5.5,
        "lm_head_multiplier": 0.0195,
    },
    "falcon_h1-biases": {"model_type": "falcon_h1", "mamba_proj_bias": True, "projectors_bias": True, "mlp_bias": True},
    "nemotron_h-8b": {
        "model_type": "nemotron_h",
        "num_hidden_layers": 52,
        "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
        "attention_head_dim": 128,
        "num_key_value_heads": 8,
        "intermediate_size": 21504,
        "max_position_embeddings": 8192,
        "rope_theta": 10000,
        "n_groups": 8,
        "mamba_num_heads": 128,
        "expand": 2,
    },
    "nemotron_h-3-nano": {
        "model_type": "nemotron_h",
        "hidden_size": 2688,
        "num_hidden_layers": 52,
        "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
        "head_dim": 128,
        "num_key_value_heads": 2,
        "intermediate_size": 1856,
        "mamba_num_heads": 64,
        "mamba_head_dim": 64,
        "n_routed_experts": 128,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 1856,
        "moe_shared_expert_intermediate_size": 3712,
        "routed_scaling_factor": 2.5,
        "max_position_embeddings": 262144,
    },
    "phi-2": {
        "model_type": "phi",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 32,
        "partial_rotary_factor": 0.4,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
    "gptj-6b": {"model_type": "gptj", "n_ctx": 2048, "n_inner": None, "rotary": True, "scale_attn_weights": True},
    "bloom-560m": {
        "model_type": "bloom",
        "n_embed": 1024,
        "n_layer": 24,
        "num_attention_heads": 16,
        "seq_length": 2048,
        "apply_residual_connection_post_layernorm": False,
    },
    "falcon-7b": {"model_type": "falcon", "alibi": False, "bias": False, "multi_query": True, "parallel_attn": True},
    "falcon-40b": {
        "model_type": "falcon",
        "hidden_size": 8192,
        "num_hidden_layers": 60,
        "num_attention_heads": 128,
        "num_kv_heads": 8,
        "new_decoder_architecture": True,
    },
    "falcon-11b": {
        "model_type": "falcon",
        "hidden_size": 4096,
        "num_hidden_layers": 60,
        "num_attention_heads": 32,
        "num_kv_heads": 8,
        "num_ln_in_parallel_attn": 1,
        "ffn_hidden_size": 16384,
        "new_decoder_architecture": True,
        "max_position_embeddings": 8192,
        "rope_theta": 500042.0,
        "tie_word_embeddings": False,
    },
    "falcon-rw-1b": {
        "model_type": "falcon",
        "alibi": True,
        "bias": True,
        "hidden_size": 2048,
        "multi_query": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 24,
        "parallel_attn": False,
        "vocab_size": 50304,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gptj-wide": {"model_type": "gptj", "n_embd": 96, "n_head": 2, "rotary_dim": 10, "n_inner": 100},
    "deepseek_v2-lite": {
        "model_type": "deepseek_v2",
        "first_k_dense_replace": 1,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "max_position_embeddings": 163840,
        "moe_intermediate_size": 1408,
        "n_group": 1,
        "norm_topk_prob": False,
        "num_attention_heads": 16,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 27,
        "num_key_value_heads": 16,
        "q_lora_rank": None,
        "rope_scaling": DEEPSEEK_YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
        "scoring_func": "softmax",
        "topk_group": 1,
        "topk_method": "greedy",
    },
    "deepseek_v3-671b": {
        "model_type": "deepseek_v3",
        "max_position_embeddings": 163840,
        "num_hidden_layers": 61,
        "rope_scaling": DEEPSEEK_YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    },
    "gemma4_text-e2b": {
        "model_type": "gemma4_text",
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_hidden_layers": 35,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 20,
        "use_double_wide_mlp": True,
        "layer_types": [*["sliding_attention"] * 4, "full_attention"] * 7,
        "final_logit_softcapping": 30.0,
    },
    "gemma4_text-e4b": {
        "model_type": "gemma4_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 42,
        "num_key_value_heads": 2,
        "num_kv_shared_layers": 18,
        "num_global_key_value_heads": None,
    },
    "gemma4_text-31b": {
        "model_type": "gemma4_text",
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_hidden_layers": 60,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "num_global_key_value_heads": 4,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "sliding_window": 1024,
        "use_bidirectional_attention": "vision",
    },
    "gemma4_text-26b-a4b": {
        "model_type": "gemma4_text",
        "hidden_size": 2816,
        "intermediate_size": 2112,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_global_key_value_heads": 2,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 128,
        "top_k_experts": 8,
        "moe_intermediate_size": 704,
    },
    "olmoe-normalized": {"model_type": "olmoe", "norm_topk_prob": True, "num_experts": 8, "num_key_value_heads": 4},
}


@pytest.mark.parametrize("name", FILES)
def test_old_and_new_files_are_read_as_in_transformers(name: str) -> None:
    assert_same(parse(FILES[name]), transformers_config(FILES[name]))


@pytest.mark.parametrize("name", [*TEXT_FAMILIES, *FILES])
def test_models_have_as_many_parameters_as_in_transformers(name: str) -> None:
    """So no config makes a model with a missing or an additional bias, norm or head."""
    raw = FILES.get(name, {"model_type": name} | NECESSARY.get(name, {}))
    layers = min(raw.get("num_hidden_layers", 3), 9)
    raw = {**raw, LAYERS_KEY.get(raw["model_type"], "num_hidden_layers"): layers}
    if "hybrid_override_pattern" in raw:
        raw["hybrid_override_pattern"] = raw["hybrid_override_pattern"][:layers]
    if raw["model_type"] == "gpt_neo":
        raw["attention_types"] = [[["global"], layers]]
    if raw["model_type"] == "gemma4_text":
        raw |= {"layer_types": raw["layer_types"][:layers]} if "layer_types" in raw else {}
        raw["num_kv_shared_layers"] = min(raw.get("num_kv_shared_layers", 0), 3)
    if raw.get("layer_types"):
        raw["layer_types"] = raw["layer_types"][:layers]
    config = transformers_config(raw)
    unused = 2 * config.hidden_size if raw["model_type"] == "opt" else 0  # rows of the table of positions
    assert count_parameters(parse(raw)) + unused == count_transformers_parameters(config)


@pytest.mark.parametrize("name", ["gemma3_text", *(name for name in FILES if name.startswith("gemma3_text"))])
def test_the_text_config_of_a_multimodal_model_is_read_as_in_transformers(name: str) -> None:
    raw = {"model_type": "gemma3", "text_config": FILES.get(name, {"model_type": name}), "vision_config": {}}
    ours = parse(raw)
    assert ours.model_type == "gemma3"
    assert_same(ours, transformers_config(raw))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("outer", "text"),
    [
        ("mistral3", {"model_type": "mistral", "sliding_window": None}),
        ("mistral3", {"model_type": "ministral3"}),
        ("llava", {"model_type": "llama"}),
        ("qwen2_vl", {"model_type": "qwen2_vl_text", "tie_word_embeddings": False}),
        ("qwen2_5_vl", {"model_type": "qwen2_5_vl_text", "tie_word_embeddings": False}),
        ("qwen3_vl", {"model_type": "qwen3_vl_text", "num_attention_heads": 8, "num_key_value_heads": 2}),
        ("llama4", {"model_type": "llama4_text", "interleave_moe_layer_step": 2}),
        ("qwen3_vl_moe", {"model_type": "qwen3_vl_moe_text"}),
        ("qwen3_vl_moe", {"model_type": "qwen3_vl_moe_text", "num_experts": 128, "num_experts_per_tok": 8}),
    ],
)
def test_the_text_models_of_other_multimodal_models_are_read_as_in_transformers(
    outer: str, text: dict[str, Any], flat: bool
) -> None:
    section = [16, 24, 24]
    mrope = {"rope_scaling": {"type": "mrope", "mrope_section": section, "rope_type": "default"}, "rope_theta": 2e6}
    text = {**text, **(mrope if "vl" in outer else {}), "bos_token_id": 7, "eos_token_id": 8}
    text |= {"tie_word_embeddings": False}
    if flat and not outer.startswith("qwen2"):
        assert rejection({"model_type": outer}) is not None
        return
    raw = {"model_type": outer, **(text | {"model_type": outer} if flat else {"text_config": text})}
    raw |= {"tie_word_embeddings": False}
    ours = parse(raw)
    assert ours.model_type == outer
    theirs = transformers_config(raw)
    if theirs.rope_parameters is not None:
        for key in ("mrope_section", "mrope_interleaved"):
            theirs.rope_parameters.pop(key, None)
    theirs.tie_word_embeddings = False  # a flat file's is outside of the text config
    assert_same(ours, theirs)


def test_unknown_text_models_of_multimodal_models_are_rejected() -> None:
    for text in ("gpt2", "qwen2_vl_text", 3, None):
        error = rejection({"model_type": "mistral3", "text_config": {"model_type": text}})
        assert error is not None
        assert "text_config" in error.message


def test_the_outer_end_tokens_of_a_multimodal_config_take_precedence() -> None:
    text = {"model_type": "gemma3_text", "eos_token_id": 9}
    assert parse({"model_type": "gemma3", "text_config": text, "eos_token_id": [1, 106]}).eos_token_ids == (1, 106)
    assert parse({"model_type": "gemma3", "text_config": text}).eos_token_ids == (9,)


def test_the_first_name_of_longrope_means_the_same() -> None:
    """The first Phi-3 files call it "su", which transformers does not read."""
    old = {**FILES["phi3-yarn"], "rope_scaling": {"type": "su", **FACTORS}}
    assert parse(old) == parse(FILES["phi3-yarn"])


DELTA_NETS = ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next")
# In transformers, GLM-4.7-Flash does not run if it rotates part of its rotated features.
UNUSUAL_ROPE = (
    *("bloom", "glm4_moe_lite", "gpt2", "gpt_neo", "gptj", "opt", "granitemoehybrid"),
    *WITHOUT_POSITIONS,
    *SCALED_BY_DEFAULT,
)


@pytest.mark.parametrize("place", ["top", "rope_parameters"])
@pytest.mark.parametrize("name", [name for name in TEXT_FAMILIES if name not in UNUSUAL_ROPE])
def test_as_many_features_are_rotated_as_in_transformers(name: str, place: str) -> None:
    """Most families ignore ``partial_rotary_factor``; the others rotate that part of each head."""
    raw: dict[str, Any] = {"model_type": name, "num_hidden_layers": 1, "hidden_size": 256, "num_attention_heads": 4}
    if place == "top":
        raw["rotary_pct" if name == "gpt_neox" else "partial_rotary_factor"] = 0.5
    else:
        raw["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    if name in ("gemma3_text", "gemma4_text"):
        types = raw.pop("rope_parameters", {"rope_type": "default", "rope_theta": 1e4} if "4" in name else {})
        raw |= {"layer_types": ["full_attention"], "rope_parameters": {"full_attention": types}, "global_head_dim": 64}
    if name == "lfm2_moe":
        raw["layer_types"] = ["full_attention"]
    raw |= {"num_key_value_heads": 2, "head_dim": 64, "vocab_size": 100, "intermediate_size": 8, "pad_token_id": 0}
    if name == "falcon":  # it has no head_dim
        del raw["head_dim"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(transformers_config(raw))
    sizes = {2 * len(each) for name, each in model.named_buffers() if name.endswith("inv_freq")}
    ours = parse(raw)
    assert ours.rope is not None
    assert ours.rope.rotated(ours.head_dim) == max(sizes)
    assert max(sizes) == (32 if name in ("phi", "phi3", "gpt_neox", "stablelm", "glm4", *DELTA_NETS) else 64)


@pytest.mark.parametrize(
    ("share", "culprit"), [(0.0, "partial_rotary_factor"), (1.5, "partial_rotary_factor"), (0.02, "rotated")]
)
@pytest.mark.parametrize("name", ["phi3", "gpt_neox", "stablelm"])
def test_impossible_parts_of_heads_are_rejected(name: str, share: float, culprit: str) -> None:
    with pytest.raises(LlmcliError, match=culprit):
        parse({"model_type": name, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": share}})


# Any file is either parsed or rejected with an LlmcliError.

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([10**30, 10**400, -(10**400)]),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(-1, 9), max_size=3),
    st.dictionaries(st.sampled_from(["full_attention", "rope_type", "factor"]), st.integers(-1, 9), max_size=2),
)
rope_values = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(["default", "linear", "dynamic", "yarn", "longrope", "llama3", "su"])},
    optional=dict.fromkeys(
        [
            "factor",
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "rope_theta",
            "partial_rotary_factor",
            "attention_factor",
            "low_freq_factor",
            "short_factor",
            "long_factor",
        ],
        values,
    ),
)


@pytest.mark.parametrize("name", [*TEXT_FAMILIES, *FILES])
@settings(max_examples=8)
@given(data=st.data())
def test_any_values_are_parsed_or_rejected(name: str, data: st.DataObject) -> None:
    raw = dict(FILES.get(name, {"model_type": name}))
    known = {**transformers_config({"model_type": raw["model_type"]}).to_dict(), **raw}
    for key in data.draw(st.lists(st.sampled_from(sorted(known.keys() - {"model_type"})), max_size=3)):
        raw[key] = data.draw(values)
    if data.draw(st.booleans()):
        raw[data.draw(st.sampled_from(["rope_scaling", "rope_parameters"]))] = data.draw(rope_values)
    for error in (rejection(raw), rejection({"model_type": "gemma3", "text_config": raw})):
        assert error is None or (error.hint and "config.json" in error.message)


@pytest.mark.parametrize("model_type", TEXT_FAMILIES)
@pytest.mark.parametrize("value", [2**40, 10**30, 10**400, -(10**400)], ids=["2^40", "10^30", "10^400", "-10^400"])
def test_absurd_numbers_cost_no_memory_or_time(model_type: str, value: int) -> None:
    known = {"num_hidden_layers": 4} | transformers_config({"model_type": model_type}).to_dict()
    sizes = [key for key, usual in known.items() if type(usual) in (int, float)]
    assert len(sizes) > 6
    rejected = {key: rejection({"model_type": model_type, key: value}) for key in sizes}
    assert all(rejected[key] for key in ("vocab_size", LAYERS_KEY.get(model_type, "num_hidden_layers")))


def rejection(raw: dict[str, Any]) -> LlmcliError | None:
    """The error that parsing the file raises; None if it succeeds."""
    try:
        parse(raw)
    except LlmcliError as error:
        return error
    return None


# Real files.

COUNTS = {
    "Llama-3.1-8B-Instruct": 8_030_261_248,
    "Llama-3.2-1B-Instruct": 1_235_814_400,
    "SmolLM2-135M": 134_515_008,
    "Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen3-8B": 8_190_735_360,
    "Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "phi-4": 14_659_507_200,
    "pythia-6.9b-deduped": 6_857_302_016,
    "distilgpt2": 81_912_576,
    "phi-1": 1_414_562_935,
}


# Published totals of models whose config is among FILES.
PUBLISHED = {
    "gpt_oss-20b": 20_914_757_184,
    "deepseek_v2-lite": 15_706_484_224,
    "olmo3-7b": 7_298_011_136,
    "gemma-2b": 2_506_172_416,
    "olmo-1b": 1_176_764_416,
    "gpt_neo-125m": 125_198_592,
    "falcon_h1-0.5b": 521_411_104,
    "mamba2-130m": 128_989_632,
    "mamba2-codestral-7b": 7_285_403_648,
    "nemotron_h-8b": 8_100_852_736,
    "nemotron_h-3-nano": 31_577_940_288,
    "opt-1.3b": 1_315_753_984,  # 2 rows of the table of positions are unused
    "lfm2-8b-a1b": 8_339_929_856 + 22 * 32,  # a bias for each expert, which transformers does not count
    "granite4-h-tiny": 6_939_037_248,
    "phi-2": 2_779_683_840,
    "bloom-560m": 559_214_592,
    "falcon-7b": 6_921_720_704,
    "falcon-rw-1b": 1_311_625_216,
    "gptj-6b": 6_050_882_784,  # as transformers counts; its card says 610 x 4096 more
    # Without encoders of images and sound, and without what layers that share keys and values store but do not use.
    "gemma4_text-e2b": 4_628_569_379,
    "gemma4_text-e4b": 7_463_013_418,
    "gemma4_text-31b": 30_697_345_340,
    "gemma4_text-26b-a4b": 25_233_141_790,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_published_number_of_parameters(name: str) -> None:
    assert count_parameters(parse(FILES[name])) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("raw", "billions"),
    [
        ({"model_type": "qwen3_next", "num_hidden_layers": 48}, 79.7),  # Qwen3-Next-80B-A3B
        ({"model_type": "qwen3_5_moe_text", "num_hidden_layers": 40}, 34.7),  # Qwen3.5-35B-A3B
    ],
)
def test_published_models_with_hundreds_of_experts(raw: dict[str, Any], billions: float) -> None:
    """Their 20,000 experts are too many to build here, so transformers counts the layers after the first four."""
    first = {**raw, "num_hidden_layers": 4}
    rest = count_transformers_parameters(transformers_config(raw)) - count_transformers_parameters(
        transformers_config(first)
    )
    assert round((count_parameters(parse(first)) + rest) / 1e9, 1) == billions


def test_deepseek_v3_has_the_published_number_of_parameters() -> None:
    """Without the layer that predicts further tokens. All layers from the fourth on have the same sizes."""
    four, five = (count_parameters(parse(FILES["deepseek_v3-671b"] | {"num_hidden_layers": n})) for n in (4, 5))
    assert four + 57 * (five - four) == 671_026_419_200


@needs_real
@pytest.mark.parametrize("name", COUNTS)
def test_real_configs_have_the_published_number_of_parameters(name: str) -> None:
    assert count_parameters(Checkpoint.read(REAL / name).config) == COUNTS[name]


@needs_real
@pytest.mark.parametrize("name", COUNTS)
def test_real_configs_are_read_as_in_transformers(name: str) -> None:
    raw = json.loads((REAL / name / "config.json").read_text())
    assert_same(Checkpoint.read(REAL / name).config, transformers_config(raw))


@needs_real
def test_configs_of_other_families_are_rejected_with_a_list_of_supported_families(tmp_path: Path) -> None:
    raw = json.loads((REAL / "phi-1" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "model_type": "mpt"}))
    with pytest.raises(LlmcliError, match="is not supported") as caught:
        Checkpoint.read(tmp_path)
    assert all(family in caught.value.hint for family in FAMILIES)


def test_a_token_id_of_minus_one_is_no_token() -> None:
    raw = {"model_type": "llama", "bos_token_id": -1, "eos_token_id": [2, -1]}
    config = parse(raw)
    assert (config.bos_token_id, config.eos_token_ids) == (None, (2,))
    assert parse({**raw, "eos_token_id": -1}).eos_token_ids == ()
    with pytest.raises(LlmcliError, match="eos_token_id"):
        parse({**raw, "eos_token_id": -2})
