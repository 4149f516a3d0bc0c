"""Gemma 3 (Gemma Team 2025): Gemma 2 with normed heads for softcaps, one full layer in six, faster local angles.

``gemma3_text`` is the text model; ``gemma3`` wraps it together with an image encoder, which is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmcli.model.config import ModelConfig, RopeConfig
from llmcli.model.families.common import rope
from llmcli.model.families.fields import field, layer_types, optional, wrong
from llmcli.model.families.gemma2 import NAMES, gemma
from llmcli.model.families.rules import Family


def parse(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig, with the defaults of transformers' Gemma3TextConfig."""
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
    """The windowed layers' angles: never stretched, unless ``rope_parameters`` says so."""
    nested = raw.get("rope_parameters")
    local = nested.get("sliding_attention") if isinstance(nested, Mapping) else None
    theta = field(raw, "rope_local_base_freq", 10000.0)
    return rope({"rope_parameters": local or {}}, context, theta, 1.0)


def parse_wrapped(raw: Mapping[str, Any]) -> ModelConfig:
    """The text model of a config.json whose ``text_config`` it is; the outer tokens go before the inner."""
    text = raw.get("text_config")
    if not isinstance(text, Mapping):
        raise wrong("text_config", text, "an object")
    outer = {key: raw[key] for key in ("bos_token_id", "eos_token_id", "tie_word_embeddings") if key in raw}
    return replace(parse({**text, **outer}), model_type="gemma3")


FAMILY = Family("gemma3_text", parse, NAMES.rules)
WRAPPED = Family(
    "gemma3",
    parse_wrapped,
    NAMES.rules,
    renamed=((r"^language_model\.", ""), (r"^model\.language_model\.", "model.")),
    dropped=(r"(model\.)?(vision_tower|multi_modal_projector)\..*",),
)
