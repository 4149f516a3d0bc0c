"""Gemma 4 in GGUF files: layers with full attention have heads, rotation and key/value heads of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.gguf_architecture import (
    EXPERT_SIZE,
    NAMES,
    RMS,
    WINDOW,
    Architecture,
    Value,
    expert_field,
    field_of,
    refusing,
)
from llmcli.model.families.gguf_contents import KV_HEADS, Contents
from llmcli.model.families.gguf_rope import proportional

WIDTHS = "feed_forward_length"
PATTERN = "attention.sliding_window_pattern"


def _first(contents: Contents, key: str) -> Any:
    return contents.by_layer(key)[0]


def _kv_heads(contents: Contents, key: str) -> Any:
    """The key/value heads of layers with a window; where none has one, those of all layers."""
    layers = zip(contents.by_layer(key), contents.by_layer(PATTERN), strict=True)
    found = [heads for heads, windowed in layers if windowed]
    return (found or contents.by_layer(key))[0]


VALUES = (
    *RMS,
    WINDOW,
    replace(field_of("intermediate_size", WIDTHS), read=_first),
    replace(field_of("num_key_value_heads", KV_HEADS, required=False), read=_kv_heads),
    field_of("num_kv_shared_layers", "attention.shared_kv_layers", required=False),
    # llama.cpp has a softcap of its own where the file has no key.
    Value("final_logit_softcapping", "final_logit_softcapping", lambda config: config.logit_softcap or 0.0, False),
    replace(expert_field("num_experts", "expert_count"), required=False),
    replace(expert_field("num_experts_per_tok", "expert_used_count"), name="top_k_experts", required=False),
    replace(EXPERT_SIZE, required=False),
)


def _gemma4(contents: Contents) -> dict[str, Any]:
    windowed, widths, kv_heads = (contents.by_layer(key) for key in (PATTERN, WIDTHS, KV_HEADS))
    full = [layer for layer, has_window in enumerate(windowed) if not has_window]
    global_dim = contents.head_dim
    own: dict[str, Any] = {"head_dim": global_dim}
    if full and kv_heads[full[0]] != _kv_heads(contents, KV_HEADS):
        own["num_key_value_heads"] = kv_heads[full[0]]
    theta, local_theta = contents.find("rope.freq_base"), contents.find("rope.freq_base_swa")
    own_inputs = contents.find("embedding_length_per_layer_input") or 0
    return {
        "head_dim": contents.count("attention.key_length_swa", global_dim),
        "per_layer_config": {str(layer): own for layer in full},
        "layer_types": ["sliding_attention" if each else "full_attention" for each in windowed],
        "attention_k_eq_v": bool(full) and f"blk.{full[0]}.attn_v.weight" not in contents.shapes,
        "use_double_wide_mlp": widths[-1] == 2 * widths[0],
        "hidden_size_per_layer_input": own_inputs,
        "vocab_size_per_layer_input": contents.rows("per_layer_token_embd.weight") if own_inputs else 1,
        "enable_moe_block": bool(contents.find("expert_count")),
        "final_logit_softcapping": contents.find("final_logit_softcapping") or None,
        "rope_scaling": None,
        "rope_parameters": {
            "full_attention": {"rope_theta": theta or 10000.0, **proportional(contents, global_dim)},
            "sliding_attention": {"rope_type": "default", "rope_theta": local_theta or 10000.0},
        },
    }


def _more(config: ModelConfig) -> dict[str, Any]:
    layers, size = range(config.num_hidden_layers), config.global_head_dim or config.head_dim
    local = config.local_rope
    return {
        PATTERN: [config.layer_type(layer) == "sliding_attention" for layer in layers],
        KV_HEADS: [config.kv_heads(layer) for layer in layers],
        WIDTHS: [config.mlp_size(layer) for layer in layers],
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.key_length_swa": config.head_dim,
        "attention.value_length_swa": config.head_dim,
        "rope.dimension_count_swa": config.head_dim,
        "rope.freq_base_swa": None if local is None else local.theta,
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input or 0,
    }


def _one_vocabulary(config: ModelConfig) -> bool:
    return config.vocab_size_per_layer_input in (None, config.vocab_size)


def _reads_last_ones(config: ModelConfig) -> bool:
    """In llama.cpp, shared keys and values are those of the last two layers before: with a window, then without one."""
    first = config.num_hidden_layers - config.num_kv_shared_layers
    return all(
        config.kv_layer(layer) == first - (2 if config.layer_type(layer) == "sliding_attention" else 1)
        for layer in range(first, config.num_hidden_layers)
    )


GEMMA4 = Architecture(
    "gemma4_text",
    replace(
        NAMES,
        mlp_post_norm="post_ffw_norm",
        layer_inputs=("per_layer_token_embd", "per_layer_model_proj", "per_layer_proj_norm"),
        layer_input=("inp_gate", "proj", "post_norm"),
        layer_scalar="layer_output_scale.weight",
        router_norm="ffn_gate_inp.scale",
        expert_scale="ffn_down_exps.scale",
        norms_beside=("post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2"),
    ),
    VALUES,
    _gemma4,
    refused=refusing(vocab_size_per_layer_input=_one_vocabulary, num_kv_shared_layers=_reads_last_ones),
    more=_more,
    dropped=(r"blk\.\d+\.attn_(k|v|k_norm)\.weight",),  # of layers that read another's keys and values
    plain_heads=False,
)
