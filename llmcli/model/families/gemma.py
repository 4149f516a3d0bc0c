"""Gemma 1 to 3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.model.config import ModelConfig, RopeConfig
from llmcli.model.families.fields import (
    ACTIVATIONS,
    Defaults,
    choice,
    common,
    field,
    layer_types,
    optional,
    rope,
    wrong,
)
from llmcli.model.families.rules import Family, Names

GELUS = {**ACTIVATIONS, "gelu": ACTIVATIONS["gelu_pytorch_tanh"]}  # early files call it "gelu"


def parse_gemma1(raw: Mapping[str, Any]) -> ModelConfig:
    """Gemma (Gemma Team 2024): a Llama with a GELU, a scaled embedding, and norm weights around 0.

    config.json -> ModelConfig, with the defaults of transformers' GemmaConfig.
    """
    _check_direction(raw)
    shared = common(
        {**raw, "hidden_act": None},
        Defaults(
            model_type="gemma",
            vocab_size=256000,
            hidden_size=3072,
            intermediate_size=24576,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=16,
            head_dim=256,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            bos_token_id=2,
            eos_token_id=1,
        ),
    )
    bias = field(raw, "attention_bias", False)
    return ModelConfig(
        **shared | {"activation": choice(raw, "hidden_act", "gelu", GELUS)},
        norm_offset=1.0,
        qkv_bias=bias,
        out_bias=bias,
        embedding_scale=shared["hidden_size"] ** 0.5,
    )


GEMMA = Family("gemma", parse_gemma1, Names().rules, tokenizer_class="GemmaTokenizer")


GEMMA_NAMES = Names(
    attn_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)


def parse_gemma2(raw: Mapping[str, Any]) -> ModelConfig:
    """Gemma 2 (Gemma Team 2024): four norms per layer with weights around 0, softcaps, alternate layers windowed.

    config.json -> ModelConfig, with the defaults of transformers' Gemma2Config.
    """
    shared = gemma(raw, model_type="gemma2", vocab_size=256000, max_position_embeddings=8192)
    return ModelConfig(
        **shared,
        layer_types=layer_types(raw, shared["num_hidden_layers"], lambda layer: layer % 2 == 0),
        attention_softcap=optional(raw, "attn_logit_softcapping", 50.0, float),
        logit_softcap=optional(raw, "final_logit_softcapping", 30.0, float),
    )


def gemma(
    raw: Mapping[str, Any], *, model_type: str, vocab_size: int, max_position_embeddings: int, **others: Any
) -> dict[str, Any]:
    """``ModelConfig``'s arguments that Gemma 2 and 3 share."""
    _check_direction(raw)
    shared = common(
        raw,
        Defaults(
            model_type=model_type,
            vocab_size=vocab_size,
            hidden_size=2304,
            intermediate_size=9216,
            num_hidden_layers=26,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=256,
            max_position_embeddings=max_position_embeddings,
            tie_word_embeddings=True,
            hidden_act="gelu_pytorch_tanh",
            hidden_act_key="hidden_activation",
            bos_token_id=2,
            eos_token_id=1,
            **others,
        ),
    )
    bias = field(raw, "attention_bias", False)
    return shared | {
        "norm_offset": 1.0,
        "post_norm": True,
        "qkv_bias": bias,
        "out_bias": bias,
        "sliding_window": optional(raw, "sliding_window", 4096, int),
        "attention_scale": max(field(raw, "query_pre_attn_scalar", 256.0), 1e-9) ** -0.5,
        "embedding_scale": shared["hidden_size"] ** 0.5,
    }


def _check_direction(raw: Mapping[str, Any]) -> None:
    """Raise LlmcliError if the model's attention is not causal."""
    if field(raw, "use_bidirectional_attention", False):
        raise LlmcliError(
            "config.json: use_bidirectional_attention is not supported", "such a model does not generate text"
        )


GEMMA2 = Family("gemma2", parse_gemma2, GEMMA_NAMES.rules, tokenizer_class="GemmaTokenizer")


def parse_gemma3(raw: Mapping[str, Any]) -> ModelConfig:
    """Gemma 3 (Gemma Team 2025): Gemma 2 with normalized heads instead of softcaps, one full layer in six.

    config.json -> ModelConfig, with the defaults of transformers' Gemma3TextConfig.
    """
    shared = gemma(
        raw, model_type="gemma3_text", vocab_size=262208, max_position_embeddings=131072, rope_theta=1000000.0
    )
    pattern = field(raw, "sliding_window_pattern", field(raw, "_sliding_window_pattern", 6))
    return ModelConfig(
        **shared,
        layer_types=layer_types(raw, shared["num_hidden_layers"], lambda layer: (layer + 1) % max(pattern, 1) != 0),
        local_rope=local_rope(raw, shared["max_position_embeddings"]),
        qk_norm="head",
        attention_softcap=optional(raw, "attn_logit_softcapping", None, float),
        logit_softcap=optional(raw, "final_logit_softcapping", None, float),
    )


def local_rope(raw: Mapping[str, Any], context: int) -> RopeConfig:
    """Rotary settings of the windowed layers: unscaled unless ``rope_parameters`` says otherwise."""
    nested = raw.get("rope_parameters")
    local = nested.get("sliding_attention") if isinstance(nested, Mapping) else None
    theta = field(raw, "rope_local_base_freq", 10000.0)
    return rope({"rope_parameters": local or {}}, context, theta, None)


def parse_multimodal(raw: Mapping[str, Any]) -> ModelConfig:
    """The text model in a config.json's ``text_config``; the outer file's special tokens take precedence.

    The image encoder's tensors are dropped by name.
    """
    return replace(parse_gemma3(text_config(raw)), model_type="gemma3")


def text_config(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a multimodal config.json that describes the text model, with the special tokens of the whole."""
    text = raw.get("text_config")
    if not isinstance(text, Mapping):
        raise wrong("text_config", text, "an object")
    outer = {key: raw[key] for key in ("bos_token_id", "eos_token_id", "tie_word_embeddings") if key in raw}
    return {**text, **outer}


GEMMA3 = Family("gemma3_text", parse_gemma3, GEMMA_NAMES.rules, tokenizer_class="GemmaTokenizer")
GEMMA3_MULTIMODAL = Family(
    "gemma3",
    parse_multimodal,
    GEMMA_NAMES.rules,
    renamed=((r"^language_model\.", ""), (r"^model\.language_model\.", "model.")),
    dropped=(r"(model\.)?(vision_tower|multi_modal_projector)\..*",),
    tokenizer_class="GemmaTokenizer",
    text_only=True,
)
