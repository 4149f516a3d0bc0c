"""GPT-NeoX and Pythia (Black et al. 2022): LayerNorm, attention and MLP in parallel, heads rotated in part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.common import common
from llmcli.model.families.fields import field
from llmcli.model.families.names import Names
from llmcli.model.families.rules import Family

NAMES = Names(
    embedding="gpt_neox.embed_in",
    norm="gpt_neox.final_layer_norm",
    head="embed_out",
    layer="gpt_neox.layers.{}.",
    qkv=("attention.query_key_value",),
    out="attention.dense",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    by_head=True,
)


def parse(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig, with the defaults of transformers' GPTNeoXConfig."""
    older = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
    shared = common(
        {**raw, **{newer: raw[key] for key, newer in older.items() if key in raw}, "num_key_value_heads": None},
        model_type="gpt_neox",
        vocab_size=50432,
        hidden_size=6144,
        intermediate_size=24576,
        num_hidden_layers=44,
        num_attention_heads=64,
        max_position_embeddings=2048,
        norm_eps=1e-5,
        norm_eps_key="layer_norm_eps",
        hidden_act="gelu",
        partial_rotary_factor=0.25,
        bos_token_id=0,
        eos_token_id=2,
    )
    bias = field(raw, "attention_bias", True)
    return ModelConfig(
        **shared,
        norm="layer",
        norm_bias=True,
        parallel_residual=field(raw, "use_parallel_residual", True),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        gated_mlp=False,
    )


FAMILY = Family(
    "gpt_neox",
    parse,
    NAMES.rules,
    renamed=((r"^lm_head\.", "embed_out."),),
    dropped=(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
)
