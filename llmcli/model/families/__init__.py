"""The supported model families, by config.json's ``model_type``. Related families share a file.

To add a family, add a section to one of these files, or a new file, and an entry in ``_ALL``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.model.families import (
    apertus,
    cohere,
    deepseek,
    exaone,
    falcon,
    falcon_h1,
    gemma,
    gemma4,
    glm,
    gpt,
    gpt_oss,
    granite_hybrid,
    hunyuan,
    lfm,
    llama,
    llama4,
    mamba,
    mistral,
    multimodal,
    nanochat,
    olmo,
    opt,
    phi,
    qwen,
    qwen_next,
)
from llmcli.model.families.rules import Family

_ALL = (
    llama.LLAMA,
    mistral.MISTRAL,
    qwen.QWEN2,
    qwen.QWEN3,
    llama.SMOLLM3,
    gemma.GEMMA2,
    gemma.GEMMA3,
    gemma.GEMMA3_MULTIMODAL,
    gemma4.GEMMA4,
    gemma4.GEMMA4_MULTIMODAL,
    phi.PHI,
    phi.PHI3,
    gpt.GPT2,
    gpt.GPTJ,
    gpt.GPT_NEOX,
    gpt_oss.GPT_OSS,
    olmo.OLMO3,
    mistral.MINISTRAL3,
    llama.SEED_OSS,
    llama.ARCEE,
    nanochat.NANOCHAT,
    cohere.COHERE2,
    exaone.EXAONE4,
    glm.GLM4,
    llama.ERNIE4_5,
    hunyuan.HUNYUAN,
    apertus.APERTUS,
    gemma.GEMMA,
    olmo.OLMO,
    llama.HELIUM,
    gpt.GPT_NEO,
    opt.OPT,
    falcon.BLOOM,
    falcon.FALCON,
    olmo.OLMO2,
    llama.GRANITE,
    llama.STABLELM,
    gpt.STARCODER2,
    cohere.COHERE,
    mistral.MIXTRAL,
    qwen.QWEN2_MOE,
    qwen.QWEN3_MOE,
    qwen_next.QWEN3_5,
    qwen_next.QWEN3_5_MULTIMODAL,
    qwen_next.QWEN3_NEXT,
    qwen_next.QWEN3_5_MOE,
    qwen_next.QWEN3_5_MOE_MULTIMODAL,
    lfm.LFM2,
    lfm.LFM2_MOE,
    granite_hybrid.GRANITE_HYBRID,
    mamba.MAMBA2,
    mamba.NEMOTRON_H,
    falcon_h1.FALCON_H1,
    olmo.OLMOE,
    deepseek.DEEPSEEK_V2,
    deepseek.DEEPSEEK_V3,
    deepseek.GLM4_MOE_LITE,
    multimodal.MISTRAL3,
    multimodal.LLAVA,
    multimodal.QWEN2_VL,
    multimodal.QWEN2_5_VL,
    multimodal.QWEN3_VL,
    llama4.LLAMA4,
    multimodal.LLAMA4,
    multimodal.QWEN3_VL_MOE,
)
FAMILIES: dict[str, Family] = {family.model_type: family for family in _ALL}


def family_of(raw: Mapping[str, Any]) -> Family:
    """The family of a parsed config.json. Raises LlmcliError if ``model_type`` is missing or not supported."""
    model_type = raw.get("model_type")
    if model_type is None:
        raise LlmcliError("config.json has no model_type", "is this the folder of a Hugging Face model?")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise LlmcliError(f"model_type {model_type!r} is not supported", "supported: " + ", ".join(FAMILIES))
    return FAMILIES[model_type]
