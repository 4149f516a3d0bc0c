"""Qwen3-Next and Qwen 3.5, dense and with experts: three of four layers have a gated delta net in attention's place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmcli.model.config import ModelConfig, MoeConfig
from llmcli.model.families.fields import Defaults, common, field, num_experts, recurrent_layers
from llmcli.model.families.gemma import text_config
from llmcli.model.families.qwen import dense_layers
from llmcli.model.families.rules import Family, Names, Rule, Source, linear
from llmcli.model.mixers.config import DeltaNetConfig


def parse_qwen3_5(raw: Mapping[str, Any]) -> ModelConfig:
    """Qwen 3.5 (Qwen Team 2026): every fourth layer has attention, whose output is gated; norms scale by 1 + weight.

    config.json -> ModelConfig, with the defaults of transformers' Qwen3_5TextConfig.
    """
    shared = common(
        raw,
        Defaults(
            model_type="qwen3_5_text",
            vocab_size=248320,
            hidden_size=4096,
            intermediate_size=12288,
            num_hidden_layers=32,
            num_attention_heads=16,
            num_key_value_heads=4,
            head_dim=256,
            max_position_embeddings=32768,
            partial_rotary_factor=0.25,
        ),
    )
    return ModelConfig(**shared, **delta_net(raw, shared["num_hidden_layers"]))


def parse_qwen3_next(raw: Mapping[str, Any]) -> ModelConfig:
    """Qwen3-Next (Qwen Team 2025): as Qwen 3.5, with many small experts, and a gated one that serves every token.

    config.json -> ModelConfig, with the defaults of transformers' Qwen3NextConfig.
    """
    shared = common(
        raw,
        Defaults(
            model_type="qwen3_next",
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=48,
            num_attention_heads=16,
            num_key_value_heads=2,
            head_dim=256,
            max_position_embeddings=32768,
            partial_rotary_factor=0.25,
        ),
    )
    layers = shared["num_hidden_layers"]
    moe = MoeConfig(
        num_experts=num_experts(raw, 512),
        num_experts_per_tok=field(raw, "num_experts_per_tok", 10),
        intermediate_size=field(raw, "moe_intermediate_size", 512),
        normalize=field(raw, "norm_topk_prob", True),
        dense_layers=dense_layers(raw, layers),
        shared_intermediate_size=field(raw, "shared_expert_intermediate_size", 512),
        shared_gate=True,
    )
    return ModelConfig(**shared, **delta_net(raw, layers), moe=moe)


def parse_qwen3_5_moe(raw: Mapping[str, Any]) -> ModelConfig:
    """Qwen 3.5 with experts (Qwen Team 2026), in every layer.

    config.json -> ModelConfig, with the defaults of transformers' Qwen3_5MoeTextConfig.
    """
    width = field(raw, "moe_intermediate_size", 512)
    shared = common(
        {**raw, "intermediate_size": width},  # no layer has an MLP without experts
        Defaults(
            model_type="qwen3_5_moe_text",
            vocab_size=248320,
            hidden_size=2048,
            intermediate_size=width,
            num_hidden_layers=40,
            num_attention_heads=16,
            num_key_value_heads=2,
            head_dim=256,
            max_position_embeddings=32768,
            partial_rotary_factor=0.25,
        ),
    )
    moe = MoeConfig(
        num_experts=num_experts(raw, 256),
        num_experts_per_tok=field(raw, "num_experts_per_tok", 8),
        intermediate_size=width,
        normalize=True,
        shared_intermediate_size=field(raw, "shared_expert_intermediate_size", 512),
        shared_gate=True,
    )
    return ModelConfig(**shared, **delta_net(raw, shared["num_hidden_layers"]), moe=moe)


def delta_net(raw: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """``ModelConfig``'s arguments that Qwen3-Next and Qwen 3.5 share."""
    bias, interval = field(raw, "attention_bias", False), max(field(raw, "full_attention_interval", 4), 1)
    return {
        "norm_offset": 1.0,
        "qk_norm": "head",
        "qkv_bias": bias,
        "out_bias": bias,
        "attention_gate": True,
        "layer_types": recurrent_layers(raw, layers, "linear_attention", lambda layer: (layer + 1) % interval != 0),
        "mixer": DeltaNetConfig(
            key_heads=field(raw, "linear_num_key_heads", 16),
            value_heads=field(raw, "linear_num_value_heads", 32),
            key_dim=field(raw, "linear_key_head_dim", 128),
            value_dim=field(raw, "linear_value_head_dim", 128),
            kernel=field(raw, "linear_conv_kernel_dim", 4),
        ),
    }


def _mixer(config: ModelConfig, ours: str, theirs: str) -> list[Rule]:
    """The rules of a gated delta net as Qwen 3.5 stores it, with a matrix for each of its inputs."""
    sizes = config.mixer
    assert isinstance(sizes, DeltaNetConfig)
    stored = theirs + "linear_attn."
    inputs = {
        "in_proj_qkv": sizes.convolved,
        "in_proj_z": sizes.values,
        "in_proj_b": sizes.value_heads,
        "in_proj_a": sizes.value_heads,
    }
    table = linear(ours + "inputs", [Source(stored + name, rows) for name, rows in inputs.items()], bias=False)
    return table + delta_net_rules(config, sizes, ours, stored)


def _mixer_by_head(config: ModelConfig, ours: str, theirs: str) -> list[Rule]:
    """The rules of a gated delta net as Qwen3-Next stores it: the inputs of a key head and of its value heads together.

    Those are query, key, values and gates in one matrix, strengths and decays in another.
    """
    sizes = config.mixer
    assert isinstance(sizes, DeltaNetConfig)
    stored, shared_by = theirs + "linear_attn.", sizes.value_heads // sizes.key_heads
    values = shared_by * sizes.value_dim
    inputs = [
        Source(
            stored + "in_proj_qkvz",
            sizes.convolved + sizes.values,
            parts=(sizes.key_dim, sizes.key_dim, values, values),
        ),
        Source(stored + "in_proj_ba", 2 * sizes.value_heads, parts=(shared_by, shared_by)),
    ]
    return linear(ours + "inputs", inputs, bias=False) + delta_net_rules(config, sizes, ours, stored)


def delta_net_rules(config: ModelConfig, sizes: DeltaNetConfig, ours: str, stored: str) -> list[Rule]:
    """The rules of everything but the inputs of a gated delta net."""
    shape = (sizes.convolved, 1, sizes.kernel)
    return [
        Rule(ours + "kernel", (Source(stored + "conv1d.weight", sizes.convolved, shape=shape),)),
        Rule(ours + "decay", (Source(stored + "A_log", sizes.value_heads),)),
        Rule(ours + "decay_bias", (Source(stored + "dt_bias", sizes.value_heads),)),
        Rule(ours + "norm.weight", (Source(stored + "norm.weight", sizes.value_dim),)),
        *linear(ours + "out", [Source(stored + "out_proj", config.hidden_size)], bias=False),
    ]


def parse_multimodal(raw: Mapping[str, Any]) -> ModelConfig:
    """The text model of a Qwen 3.5 that reads images, too."""
    return parse_qwen3_5(text_config(raw))


def parse_multimodal_moe(raw: Mapping[str, Any]) -> ModelConfig:
    """The text model of a Qwen 3.5 with experts that reads images, too."""
    return parse_qwen3_5_moe(text_config(raw))


NAMES = Names(mixer=_mixer)
UNREAD = (r"mtp\..*", r"(model\.)?visual\..*")  # heads that predict several tokens, and the image encoder
QWEN3_5 = Family("qwen3_5_text", parse_qwen3_5, NAMES.rules, dropped=UNREAD, tokenizer_class="Qwen3_5Tokenizer")
QWEN3_5_MULTIMODAL = Family(
    "qwen3_5",
    parse_multimodal,
    NAMES.rules,
    renamed=((r"^model\.language_model\.", "model."),),
    dropped=UNREAD,
    tokenizer_class="Qwen3_5Tokenizer",
    text_only=True,
)
NEXT_NAMES = Names(mixer=_mixer_by_head)
QWEN3_NEXT = Family("qwen3_next", parse_qwen3_next, NEXT_NAMES.rules, dropped=UNREAD, tokenizer_class="Qwen2Tokenizer")
QWEN3_5_MOE = replace(QWEN3_5, model_type="qwen3_5_moe_text", parse=parse_qwen3_5_moe)
QWEN3_5_MOE_MULTIMODAL = replace(QWEN3_5_MULTIMODAL, model_type="qwen3_5_moe", parse=parse_multimodal_moe)
