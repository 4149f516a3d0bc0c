"""Mistral (Jiang et al. 2023): a Llama whose first versions see a window in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import MOST_LAYERS, ModelConfig
from llmcli.model.families.common import common
from llmcli.model.families.fields import optional
from llmcli.model.families.names import Names
from llmcli.model.families.rules import Family


def parse(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig, with the defaults of transformers' MistralConfig."""
    shared = common(
        raw,
        model_type="mistral",
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        bos_token_id=1,
        eos_token_id=2,
    )
    window = optional(raw, "sliding_window", 4096, int)
    return ModelConfig(**shared, **windowed(window, shared["num_hidden_layers"]))


def windowed(window: int | None, layers: int) -> dict[str, Any]:
    """``ModelConfig``'s arguments for a window, if there is one, in all layers."""
    types = () if window is None else ("sliding_attention",) * max(min(layers, MOST_LAYERS), 0)
    return {"sliding_window": window, "layer_types": types}


FAMILY = Family("mistral", parse, Names().rules)
