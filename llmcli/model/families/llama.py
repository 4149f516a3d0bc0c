"""Llama and its close kin: Llama, SmolLM3, Granite, Helium, StableLM 2, Seed-OSS, AFM, ERNIE 4.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.fields import (
    Defaults,
    common,
    described_ids,
    field,
    layer_types,
    optional,
    wrong,
)
from llmcli.model.families.rules import Family, Names


def parse_llama(raw: Mapping[str, Any]) -> ModelConfig:
    """Llama (Touvron et al. 2023): pre-RMSNorm, rotary positions, grouped heads, a SiLU-gated MLP.

    config.json -> ModelConfig, with the defaults of transformers' LlamaConfig.
    """
    shared = common(
        raw,
        Defaults(
            model_type="llama",
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=2048,
            bos_token_id=1,
            eos_token_id=2,
        ),
    )
    bias = field(raw, "attention_bias", False)
    return ModelConfig(**shared, qkv_bias=bias, out_bias=bias, mlp_bias=field(raw, "mlp_bias", False))


def describe(config: ModelConfig) -> dict[str, Any]:
    """The config.json, for transformers too, of a Llama without rope scaling, such as ``llmcli train`` makes."""
    assert config.rope is not None
    return {
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
        "hidden_act": config.activation,
        "rope_theta": config.rope.theta,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": described_ids(config.eos_token_ids),
    }


LLAMA = Family("llama", parse_llama, Names().rules)


def parse_smollm3(raw: Mapping[str, Any]) -> ModelConfig:
    """SmolLM3 (Hugging Face 2025): a Llama in which every fourth layer has no rotary positions (NoPE).

    config.json -> ModelConfig, with the defaults of transformers' SmolLM3Config.
    """
    shared = common(
        raw,
        Defaults(
            model_type="smollm3",
            vocab_size=128256,
            hidden_size=2048,
            intermediate_size=11008,
            num_hidden_layers=36,
            num_attention_heads=16,
            num_key_value_heads=4,
            max_position_embeddings=32768,
            tie_word_embeddings=True,
            rope_theta=2000000.0,
            bos_token_id=128000,
            eos_token_id=128001,
        ),
    )
    layers = shared["num_hidden_layers"]
    still = unrotated(raw, layers)
    window = optional(raw, "sliding_window", None, int) if field(raw, "use_sliding_window", False) else None
    types = layer_types(raw, layers, lambda layer: window is not None and layer in still)
    bias = field(raw, "attention_bias", False)
    return ModelConfig(
        **shared,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=field(raw, "mlp_bias", False),
        layers_without_rope=still,
        sliding_window=window,
        layer_types=types,
    )


def unrotated(raw: Mapping[str, Any], layers: int) -> frozenset[int]:
    """Layers without RoPE: those marked 0 in ``no_rope_layers``, or every ``no_rope_layer_interval``-th."""
    marks = raw.get("no_rope_layers")
    if marks is None:
        interval = max(field(raw, "no_rope_layer_interval", 4), 1)
        return frozenset(range(interval - 1, layers, interval))
    if not isinstance(marks, list) or len(marks) != layers:
        raise wrong("no_rope_layers", marks, f"a list of {layers} entries")
    return frozenset(layer for layer, mark in enumerate(marks) if not mark)


SMOLLM3 = Family("smollm3", parse_smollm3, Names().rules)


def parse_granite(raw: Mapping[str, Any]) -> ModelConfig:
    """Granite 3 (IBM 2024): a Llama with fixed multipliers on embedding, scores, residual and logits.

    config.json -> ModelConfig, with the defaults of transformers' GraniteConfig.
    """
    shared = common(
        raw,
        Defaults(
            model_type="granite",
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=2048,
            bos_token_id=1,
            eos_token_id=2,
        ),
    )
    bias = field(raw, "attention_bias", False)
    mlp_bias = field(raw, "mlp_bias", False)
    return ModelConfig(**shared, **multipliers(raw), qkv_bias=bias, out_bias=bias, mlp_bias=mlp_bias)


def multipliers(raw: Mapping[str, Any]) -> dict[str, Any]:
    """``ModelConfig``'s arguments for Granite's multipliers."""
    divisor = field(raw, "logits_scaling", 1.0)
    if not divisor > 0:
        raise wrong("logits_scaling", divisor, "a number above 0")
    return {
        "attention_scale": field(raw, "attention_multiplier", 1.0),
        "embedding_scale": field(raw, "embedding_multiplier", 1.0),
        "residual_scale": field(raw, "residual_multiplier", 1.0),
        "logit_scale": 1.0 / divisor,
    }


GRANITE = Family("granite", parse_granite, Names().rules, tokenizer_class="")


def parse_helium(raw: Mapping[str, Any]) -> ModelConfig:
    """Helium (Kyutai 2025): a Llama whose rotary pairs are adjacent features.

    config.json -> ModelConfig, with the defaults of transformers' HeliumConfig.
    """
    shared = common(
        raw,
        Defaults(
            model_type="helium",
            vocab_size=48000,
            hidden_size=2560,
            intermediate_size=7040,
            num_hidden_layers=24,
            num_attention_heads=20,
            num_key_value_heads=20,
            head_dim=128,
            max_position_embeddings=4096,
            norm_eps=1e-8,
            rope_theta=100000.0,
            bos_token_id=1,
            eos_token_id=2,
        ),
    )
    bias = field(raw, "attention_bias", False)
    return ModelConfig(**shared, qkv_bias=bias, mlp_bias=field(raw, "mlp_bias", False))


HELIUM = Family("helium", parse_helium, Names(interleaved=True).rules)


STABLELM_NAMES = Names(q_norm="self_attn.q_layernorm.norms.{}", k_norm="self_attn.k_layernorm.norms.{}")


def parse_stablelm(raw: Mapping[str, Any]) -> ModelConfig:
    """StableLM 2 (Bellagente et al. 2024): a Llama with LayerNorm that rotates a quarter of each head.

    config.json -> ModelConfig, with the defaults of transformers' StableLmConfig.
    """
    shared = common(
        raw,
        Defaults(
            model_type="stablelm",
            vocab_size=50304,
            hidden_size=2560,
            intermediate_size=6912,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            max_position_embeddings=4096,
            norm_eps=1e-5,
            norm_eps_key="layer_norm_eps",
            partial_rotary_factor=0.25,
            bos_token_id=0,
            eos_token_id=0,
        ),
    )
    parallel = field(raw, "use_parallel_residual", False)
    return ModelConfig(
        **shared,
        norm="layer",
        norm_bias=True,
        qk_norm="heads" if field(raw, "qk_layernorm", False) else None,
        qkv_bias=field(raw, "use_qkv_bias", False),
        parallel_residual=parallel,
        shared_norm=parallel,
    )


STABLELM = Family("stablelm", parse_stablelm, STABLELM_NAMES.rules, tokenizer_class="")


def parse_seed_oss(raw: Mapping[str, Any]) -> ModelConfig:
    """Seed-OSS (ByteDance Seed 2025): a Llama with biases on q, k and v.

    config.json -> ModelConfig, with the defaults of transformers' SeedOssConfig.
    """
    shared = common(
        raw,
        Defaults(
            model_type="seed_oss",
            vocab_size=155136,
            hidden_size=4096,
            intermediate_size=27648,
            num_hidden_layers=64,
            num_attention_heads=80,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=524288,
            bos_token_id=0,
            eos_token_id=2,
        ),
    )
    return ModelConfig(
        **shared,
        qkv_bias=field(raw, "attention_bias", True),
        out_bias=field(raw, "attention_out_bias", False),
        mlp_bias=field(raw, "mlp_bias", False),
    )


SEED_OSS = Family("seed_oss", parse_seed_oss, Names().rules)


def parse_arcee(raw: Mapping[str, Any]) -> ModelConfig:
    """Arcee's AFM (Arcee AI 2025): a Llama with an ungated MLP that squares its ReLU.

    config.json -> ModelConfig, with the defaults of transformers' ArceeConfig.
    """
    shared = common(
        raw,
        Defaults(
            model_type="arcee",
            vocab_size=32000,
            hidden_size=2560,
            intermediate_size=18432,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=4096,
            norm_eps=1e-5,
            hidden_act="relu2",
            bos_token_id=128000,
            eos_token_id=128001,
        ),
    )
    bias = field(raw, "attention_bias", False)
    return ModelConfig(**shared, gated_mlp=False, qkv_bias=bias, out_bias=bias, mlp_bias=field(raw, "mlp_bias", False))


ARCEE = Family("arcee", parse_arcee, Names(up=("mlp.up_proj",)).rules)


def parse_ernie4_5(raw: Mapping[str, Any]) -> ModelConfig:
    """ERNIE 4.5 (Baidu 2025), dense: a Llama whose rotary pairs are adjacent.

    config.json -> ModelConfig, with the defaults of transformers' Ernie4_5Config.
    """
    shared = common(
        raw,
        Defaults(
            model_type="ernie4_5",
            vocab_size=103424,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=18,
            num_attention_heads=16,
            num_key_value_heads=2,
            head_dim=None if "head_dim" in raw else 128,  # null: those of the hidden size
            max_position_embeddings=131072,
            tie_word_embeddings=True,
            norm_eps=1e-5,
            rope_theta=500000.0,
            bos_token_id=1,
            eos_token_id=2,
        ),
    )
    bias = field(raw, "use_bias", False)
    return ModelConfig(**shared, qkv_bias=bias, out_bias=bias, mlp_bias=bias)


ERNIE4_5 = Family("ernie4_5", parse_ernie4_5, Names(interleaved=True).rules, tokenizer_class="")
