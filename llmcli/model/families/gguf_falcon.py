"""BLOOM and Falcon in GGUF files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmcli.model.families.gguf_architecture import (
    STACKED,
    Architecture,
    layer_norm,
    no_biases,
    refusing,
)
from llmcli.model.families.gguf_contents import Contents

EPS = (layer_norm("layer_norm_epsilon"),)
TWO_NORMS = "blk.0.attn_norm_2.weight"
BLOOM = Architecture(
    "bloom", replace(STACKED, embedding_norm="token_embd_norm"), EPS, keys={"max_position_embeddings": "seq_length"}
)


def _falcon(contents: Contents) -> dict[str, Any]:
    """Whatever the number of key/value heads, the newer form of config.json expresses it."""
    return {
        "new_decoder_architecture": True,
        "num_ln_in_parallel_attn": 2 if TWO_NORMS in contents.shapes else 1,
        "bias": "blk.0.attn_qkv.bias" in contents.shapes,
    }


# llama.cpp computes attention and MLP in parallel, with rotary positions and without biases: not Falcon-RW.
FALCON = Architecture(
    "falcon",
    STACKED,
    EPS,
    _falcon,
    refused=refusing(bias=no_biases),
    keys={"num_key_value_heads": "num_kv_heads", "intermediate_size": "ffn_hidden_size"},
)
FALCON_TWO_NORMS = replace(FALCON, names=replace(STACKED, attn_norm="attn_norm_2", mlp_norm="attn_norm"))
