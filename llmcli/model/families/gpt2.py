"""GPT-2 (Radford et al. 2019): LayerNorm, learned positions, biases everywhere, an ungated tanh-GELU MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.model.config import ModelConfig
from llmcli.model.families.fields import ACTIVATIONS, choice, field, token_ids
from llmcli.model.families.names import Names
from llmcli.model.families.rules import Family

# transformers' Conv1D holds matrices as [in, out].
NAMES = Names(
    embedding="transformer.wte",
    positions="transformer.wpe",
    norm="transformer.ln_f",
    layer="transformer.h.{}.",
    attn_norm="ln_1",
    mlp_norm="ln_2",
    qkv=("attn.c_attn",),
    out="attn.c_proj",
    up=("mlp.c_fc",),
    down="mlp.c_proj",
    transposed=True,
)


def parse(raw: Mapping[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig, with the defaults of transformers' GPT2Config."""
    for key, usual in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if field(raw, key, usual) is not usual:
            raise LlmcliError(f"config.json: {key} = {raw[key]!r} is not supported", f"only {usual} is")
    hidden = field(raw, "n_embd", 768)
    heads = field(raw, "n_head", 12)
    if heads > 0 and hidden % heads:
        raise LlmcliError(
            f"config.json: n_embd ({hidden}) must be a multiple of n_head ({heads})", "the file may be damaged"
        )
    return ModelConfig(
        model_type="gpt2",
        vocab_size=field(raw, "vocab_size", 50257),
        hidden_size=hidden,
        intermediate_size=field(raw, "n_inner", 4 * hidden),
        num_hidden_layers=field(raw, "n_layer", 12),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // max(heads, 1),
        max_position_embeddings=field(raw, "n_positions", 1024),
        tie_word_embeddings=field(raw, "tie_word_embeddings", True),
        norm="layer",
        norm_bias=True,
        norm_eps=field(raw, "layer_norm_epsilon", 1e-5),
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        gated_mlp=False,
        activation=choice(raw, "activation_function", "gelu_new", ACTIVATIONS),
        position="learned",
        bos_token_id=next(iter(token_ids(raw, "bos_token_id", 50256)), None),
        eos_token_ids=token_ids(raw, "eos_token_id", 50256),
    )


FAMILY = Family(
    "gpt2",
    parse,
    NAMES.rules,
    renamed=((r"^(?=(wte|wpe|ln_f|h)\.)", "transformer."),),
    dropped=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",),
)
