"""Llama (Touvron et al. 2023): pre-RMSNorm, rotary positions, grouped heads, a SiLU-gated MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.fields import ACTIVATIONS, choice, described_ids, field, rope, token_ids
from llmcli.model.families.rules import Family, Rule


def parse(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig, with the defaults of transformers' LlamaConfig."""
    hidden = field(raw, "hidden_size", 4096)
    heads = field(raw, "num_attention_heads", 32)
    context = field(raw, "max_position_embeddings", 2048)
    angles = rope(raw, 10000.0)
    if not angles.original_max_position_embeddings:
        angles = replace(angles, original_max_position_embeddings=context)
    return ModelConfig(
        model_type="llama",
        vocab_size=field(raw, "vocab_size", 32000),
        hidden_size=hidden,
        intermediate_size=field(raw, "intermediate_size", 11008),
        num_hidden_layers=field(raw, "num_hidden_layers", 32),
        num_attention_heads=heads,
        num_key_value_heads=field(raw, "num_key_value_heads", heads),
        head_dim=field(raw, "head_dim", hidden // max(heads, 1)),
        max_position_embeddings=context,
        tie_word_embeddings=field(raw, "tie_word_embeddings", False),
        norm="rms",
        norm_eps=field(raw, "rms_norm_eps", 1e-6),
        qkv_bias=field(raw, "attention_bias", False),
        out_bias=field(raw, "attention_bias", False),
        mlp_bias=field(raw, "mlp_bias", False),
        gated_mlp=True,
        activation=choice(raw, "hidden_act", "silu", ACTIVATIONS),
        position="rope",
        rope=angles,
        bos_token_id=next(iter(token_ids(raw, "bos_token_id", 1)), None),
        eos_token_ids=token_ids(raw, "eos_token_id", 2),
    )


def describe(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> config.json, as transformers reads it."""
    assert config.rope is not None
    described: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "rms_norm_eps": config.norm_eps,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "hidden_act": {"gelu_tanh": "gelu_pytorch_tanh"}.get(config.activation, config.activation),
        "rope_theta": config.rope.theta,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": described_ids(config.eos_token_ids),
    }
    if config.rope.rope_type != "default":
        names = ["rope_type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
        described["rope_scaling"] = {name: getattr(config.rope, name) for name in names}
    return described


def rules(config: ModelConfig) -> list[Rule]:
    """Stored names are those of transformers' LlamaForCausalLM."""
    c, q, kv, wide = config.hidden_size, config.q_size, config.kv_size, config.intermediate_size
    table = [
        Rule("embedding.weight", ("model.embed_tokens.weight",), (config.vocab_size,)),
        Rule("norm.weight", ("model.norm.weight",), (c,)),
    ]
    if not config.tie_word_embeddings:
        table.append(Rule("head.weight", ("lm_head.weight",), (config.vocab_size,)))
    for i in range(config.num_hidden_layers):
        ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
        qkv = [f"{theirs}self_attn.{name}_proj." for name in "qkv"]
        gate_up = [f"{theirs}mlp.{name}_proj." for name in ("gate", "up")]
        table += [
            Rule(f"{ours}attn_norm.weight", (f"{theirs}input_layernorm.weight",), (c,)),
            Rule(f"{ours}mlp_norm.weight", (f"{theirs}post_attention_layernorm.weight",), (c,)),
        ]
        for part in ["weight", "bias"] if config.qkv_bias else ["weight"]:
            table += [
                Rule(f"{ours}attn.qkv.{part}", tuple(name + part for name in qkv), (q, kv, kv)),
                Rule(f"{ours}attn.out.{part}", (f"{theirs}self_attn.o_proj.{part}",), (c,)),
            ]
        for part in ["weight", "bias"] if config.mlp_bias else ["weight"]:
            table += [
                Rule(f"{ours}mlp.up.{part}", tuple(name + part for name in gate_up), (wide, wide)),
                Rule(f"{ours}mlp.down.{part}", (f"{theirs}mlp.down_proj.{part}",), (c,)),
            ]
    return table


FAMILY = Family("llama", parse, describe, rules, dropped=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",))
