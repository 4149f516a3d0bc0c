"""StableLM 2 (Bellagente et al. 2024): a Llama with LayerNorm, a quarter of each head rotated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.model.config import ModelConfig
from llmcli.model.families.common import common
from llmcli.model.families.fields import field
from llmcli.model.families.names import Names
from llmcli.model.families.rules import Family

NAMES = Names(q_norm="self_attn.q_layernorm.norms.{}", k_norm="self_attn.k_layernorm.norms.{}")


def parse(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig, with the defaults of transformers' StableLmConfig."""
    shared = common(
        raw,
        model_type="stablelm",
        vocab_size=50304,
        hidden_size=2560,
        intermediate_size=6912,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
        norm_eps=1e-5,
        norm_eps_key="layer_norm_eps",
        partial_rotary_factor=0.25,
        bos_token_id=0,
        eos_token_id=0,
    )
    parallel = field(raw, "use_parallel_residual", False)
    return ModelConfig(
        **shared,
        norm="layer",
        norm_bias=True,
        qk_norm="heads" if field(raw, "qk_layernorm", False) else None,
        qkv_bias=field(raw, "use_qkv_bias", False),
        parallel_residual=parallel,
        shared_norm=parallel,
    )


FAMILY = Family("stablelm", parse, NAMES.rules, dropped=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",))
