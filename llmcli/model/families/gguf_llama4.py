"""Llama 4 in GGUF files, whose layers with experts come at equal distances."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.fields import wrong
from llmcli.model.families.gguf_architecture import (
    EXPERT_SIZE,
    EXPERTS,
    SHARED_NAMES,
    WINDOW,
    Architecture,
    Value,
    no_biases,
    refusing,
)
from llmcli.model.families.gguf_contents import Contents

UNNORMALIZED = 128  # experts of the model whose queries and keys llama.cpp does not normalize
STEP = "interleave_moe_layer_step"


def _llama4(contents: Contents) -> dict[str, Any]:
    if contents.find(WINDOW.key) == 0:
        raise wrong(WINDOW.key, 0, "8192")
    return {STEP: contents.need(STEP), "use_qk_norm": contents.need("expert_count") != UNNORMALIZED}


def _llama4_more(config: ModelConfig) -> dict[str, Any]:
    routed = [layer for layer in range(config.num_hidden_layers) if config.is_moe(layer)]
    return {STEP: routed[0] + 1 if routed else 0}


LLAMA4 = Architecture(
    "llama4_text",
    replace(SHARED_NAMES, interleaved=True),
    # Files do not state the size of chunks, which is 8192 in llama.cpp.
    (*EXPERTS, EXPERT_SIZE, Value("attention_chunk_size", WINDOW.key, lambda config: None, required=False)),
    _llama4,
    refused=refusing(attention_bias=no_biases),
    keys={
        "intermediate_size": "intermediate_size_mlp",
        "moe_intermediate_size": "intermediate_size",
        "num_experts": "num_local_experts",
    },
    more=_llama4_more,
)
