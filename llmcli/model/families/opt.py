"""OPT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.model.config import ModelConfig
from llmcli.model.families.fields import Defaults, common, field
from llmcli.model.families.rules import Family, Names

NAMES = Names(
    embedding="model.decoder.embed_tokens",
    positions="model.decoder.embed_positions",
    positions_skipped=2,
    norm="model.decoder.final_layer_norm",
    layer="model.decoder.layers.{}.",
    attn_norm="self_attn_layer_norm",
    mlp_norm="final_layer_norm",
    out="self_attn.out_proj",
    up=("fc1",),
    down="fc2",
)


def parse_opt(raw: Mapping[str, Any]) -> ModelConfig:
    """OPT (Zhang et al. 2022): GPT-2 with a ReLU, and a table of positions whose first two rows are unused.

    config.json -> ModelConfig, with the defaults of transformers' OPTConfig.
    Raises LlmcliError for OPT-350M, whose norms follow the residual sums.
    """
    for key, usual in (("do_layer_norm_before", True), ("_remove_final_layer_norm", False)):
        if field(raw, key, usual) is not usual:
            raise LlmcliError(
                f"config.json: {key} = {raw[key]!r} is not supported", "of the published models, only OPT-350M has it"
            )
    shared = common(
        {**raw, "intermediate_size": raw.get("ffn_dim"), "num_key_value_heads": None, "head_dim": None},
        Defaults(
            model_type="opt",
            vocab_size=50272,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            hidden_act="relu",
            hidden_act_key="activation_function",
            bos_token_id=2,
            eos_token_id=2,
        ),
    )
    hidden = shared["hidden_size"]
    width = field(raw, "word_embed_proj_dim", hidden)
    if width != hidden:
        raise LlmcliError(
            f"config.json: word_embed_proj_dim ({width}) must be hidden_size ({hidden})",
            "of the published models, only OPT-350M differs",
        )
    bias, affine = field(raw, "enable_bias", True), field(raw, "layer_norm_elementwise_affine", True)
    return ModelConfig(
        **shared | {"rope": None, "norm_eps": 1e-5},
        norm="layer",
        norm_weight=affine,
        norm_bias=affine,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        gated_mlp=False,
        position="learned",
    )


OPT = Family(
    "opt", parse_opt, NAMES.rules, renamed=((r"^decoder\.", "model.decoder."),), tokenizer_class="GPT2Tokenizer"
)
