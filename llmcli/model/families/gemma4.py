"""Gemma 4: local and global layers with heads of their own, shared keys and values, and per-layer embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmcli.model.config import ModelConfig, MoeConfig, RopeConfig
from llmcli.model.families.fields import Defaults, common, field, layer_types, optional, rope, wrong
from llmcli.model.families.gemma import text_config
from llmcli.model.families.rules import Family, Names

GLOBAL_ROPE = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0}


def parse_gemma4(raw: Mapping[str, Any]) -> ModelConfig:
    """Gemma 4 (Gemma Team 2026): unscaled scores of normalized queries and keys, one full layer in six.

    config.json -> ModelConfig, with the defaults of transformers' Gemma4TextConfig.
    """
    if field_text(raw, "use_bidirectional_attention") not in (None, "vision"):
        raise wrong("use_bidirectional_attention", raw["use_bidirectional_attention"], "null or 'vision'")
    shared = common(
        {**raw, "rope_parameters": None, "rope_scaling": None},
        Defaults(
            model_type="gemma4_text",
            vocab_size=262144,
            hidden_size=2304,
            intermediate_size=9216,
            num_hidden_layers=30,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=256,
            max_position_embeddings=131072,
            tie_word_embeddings=True,
            hidden_act="gelu_pytorch_tanh",
            hidden_act_key="hidden_activation",
            bos_token_id=2,
            eos_token_id=1,
        ),
    )
    layers, bias = shared["num_hidden_layers"], field(raw, "attention_bias", False)
    types = (*layer_types(raw, layers, lambda layer: (layer + 1) % 6 != 0)[:-1], "full_attention")
    sizes = _global_sizes(raw, types)
    wide = field(sizes, "head_dim", shared["head_dim"])
    size = field(raw, "hidden_size_per_layer_input", 256) or None
    return ModelConfig(
        **shared
        | {
            "rope": replace(_rope(raw, "full_attention", shared["max_position_embeddings"]), head_dim=wide),
            "local_rope": _rope(raw, "sliding_attention", shared["max_position_embeddings"]),
        },
        post_norm=True,
        qk_norm="head",
        value_norm=True,
        qkv_bias=bias,
        out_bias=bias,
        sliding_window=field(raw, "sliding_window", 512),
        layer_types=types,
        global_head_dim=wide,
        num_global_key_value_heads=optional(sizes, "num_key_value_heads", None, int),
        attention_k_eq_v=field(raw, "attention_k_eq_v", False),
        num_kv_shared_layers=field(raw, "num_kv_shared_layers", 0),
        use_double_wide_mlp=field(raw, "use_double_wide_mlp", False),
        hidden_size_per_layer_input=size,
        vocab_size_per_layer_input=field(raw, "vocab_size_per_layer_input", 262144) if size else None,
        layer_scalar=True,
        moe=_experts(raw) if field(raw, "enable_moe_block", False) else None,
        attention_scale=1.0,
        logit_softcap=optional(raw, "final_logit_softcapping", None, float),
        embedding_scale=shared["hidden_size"] ** 0.5,
    )


def _experts(raw: Mapping[str, Any]) -> MoeConfig:
    """The experts beside each layer's MLP; their numbers and sizes have no defaults."""
    for key in ("num_experts", "top_k_experts", "moe_intermediate_size"):
        if raw.get(key) is None:
            raise wrong(key, None, "a whole number")
    return MoeConfig(
        num_experts=field(raw, "num_experts", 1),
        num_experts_per_tok=field(raw, "top_k_experts", 1),
        intermediate_size=field(raw, "moe_intermediate_size", 1),
        normalize=True,
        expert_scale=True,
        beside_mlp=True,
        router_norm=True,
    )


def field_text(raw: Mapping[str, Any], key: str) -> str | None:
    """A string in config.json, or null."""
    value = raw.get(key)
    if value is not None and not isinstance(value, str):
        raise wrong(key, value, "a string")
    return value


def _global_sizes(raw: Mapping[str, Any], types: Sequence[str]) -> Mapping[str, Any]:
    """The sizes in which layers with full attention differ from the others, by their names in config.json.

    Published files have keys for them, those that transformers writes an object for each of the layers.
    """
    by_layer: object = raw.get("per_layer_config")
    if by_layer is None:
        merged = field(raw, "attention_k_eq_v", False)
        kv_heads = {"num_key_value_heads": raw.get("num_global_key_value_heads")} if merged else {}
        return {"head_dim": field(raw, "global_head_dim", 512), **kv_heads}
    full = [str(layer) for layer, kind in enumerate(types) if kind == "full_attention"]
    sizes: object = by_layer.get(full[0], {}) if isinstance(by_layer, Mapping) else None
    if not isinstance(sizes, Mapping) or by_layer != (dict.fromkeys(full, sizes) if sizes else {}):
        raise wrong("per_layer_config", by_layer, "the same for all layers with full attention and empty for others")
    if not sizes.keys() <= {"head_dim", "num_key_value_heads"}:
        raise wrong("per_layer_config", by_layer, "only about head_dim and num_key_value_heads")
    return sizes


def _rope(raw: Mapping[str, Any], layer_type: str, context: int) -> RopeConfig:
    """The rotary settings of a type of layers."""
    nested = raw.get("rope_parameters")
    given = nested.get(layer_type) if isinstance(nested, Mapping) else None
    if given is None:
        given = GLOBAL_ROPE if layer_type == "full_attention" else {}
    return rope({"rope_parameters": given}, context, 10000.0, None)


NAMES = Names(
    attn_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    layer_inputs=(
        "model.embed_tokens_per_layer",
        "model.per_layer_model_projection",
        "model.per_layer_projection_norm",
    ),
    layer_input=("per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm"),
    layer_scalar="layer_scalar",
    router="router.proj",
    router_norm="router.scale",
    expert_scale="router.per_expert_scale",
    expert="experts.{}.",
    expert_up=("gate_up_proj",),
    norms_beside=("post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2"),
)
# Layers that read another's keys and values are stored with matrices that nothing uses.
UNUSED = r"model\.layers\.\d+\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\.\w+"
GEMMA4 = Family(
    "gemma4_text",
    parse_gemma4,
    NAMES.rules,
    dropped=(UNUSED,),
    stacks_experts=True,
)
GEMMA4_MULTIMODAL = Family(
    "gemma4",
    lambda raw: replace(parse_gemma4(text_config(raw)), model_type="gemma4"),
    NAMES.rules,
    renamed=((r"^model\.language_model\.", "model."),),
    dropped=(UNUSED, r"(model\.)?(vision_tower|audio_tower|embed_vision|embed_audio)\..*"),
    stacks_experts=True,
    text_only=True,
)
