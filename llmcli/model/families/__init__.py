"""The supported model families, by config.json's ``model_type``. A new family is one file and one row here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.model.families import gpt2, llama
from llmcli.model.families.rules import Family

FAMILIES: dict[str, Family] = {module.FAMILY.model_type: module.FAMILY for module in (llama, gpt2)}


def family_of(raw: Mapping[str, Any]) -> Family:
    """The family of a parsed config.json."""
    model_type = raw.get("model_type")
    if model_type is None:
        raise LlmcliError("config.json has no model_type", "is this the folder of a Hugging Face model?")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise LlmcliError(f"model_type {model_type!r} is not supported", "supported: " + ", ".join(FAMILIES))
    return FAMILIES[model_type]
