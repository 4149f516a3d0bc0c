"""The supported model families, by config.json's ``model_type``. A new family is one file and one row here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.model.families import (
    cohere,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    granite,
    llama,
    mistral,
    mixtral,
    olmo2,
    olmoe,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
    stablelm,
    starcoder2,
)
from llmcli.model.families.rules import Family

_ALL = (
    llama.FAMILY,
    mistral.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    smollm3.FAMILY,
    gemma2.FAMILY,
    gemma3.FAMILY,
    gemma3.WRAPPED,
    phi3.FAMILY,
    gpt2.FAMILY,
    gpt_neox.FAMILY,
    olmo2.FAMILY,
    granite.FAMILY,
    stablelm.FAMILY,
    starcoder2.FAMILY,
    cohere.FAMILY,
    mixtral.FAMILY,
    qwen3_moe.FAMILY,
    olmoe.FAMILY,
)
FAMILIES: dict[str, Family] = {family.model_type: family for family in _ALL}


def family_of(raw: Mapping[str, Any]) -> Family:
    """The family of a parsed config.json."""
    model_type = raw.get("model_type")
    if model_type is None:
        raise LlmcliError("config.json has no model_type", "is this the folder of a Hugging Face model?")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise LlmcliError(f"model_type {model_type!r} is not supported", "supported: " + ", ".join(FAMILIES))
    return FAMILIES[model_type]
