"""GPT-2 (Radford et al. 2019): LayerNorm, learned positions, biases everywhere, an ungated tanh-GELU MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.model.config import ModelConfig
from llmcli.model.families.fields import ACTIVATIONS, choice, described_ids, field, token_ids
from llmcli.model.families.rules import Family, Rule


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


def describe(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> config.json, as transformers reads it."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_inner": config.intermediate_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_positions": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": {"gelu_tanh": "gelu_new"}.get(config.activation, config.activation),
        "bos_token_id": config.bos_token_id,
        "eos_token_id": described_ids(config.eos_token_ids),
    }


def rules(config: ModelConfig) -> list[Rule]:
    """Stored names are those of transformers' GPT2LMHeadModel; its Conv1D weights are stored [in, out]."""
    c = config.hidden_size
    table = [
        Rule("embedding.weight", ("wte.weight",), (config.vocab_size,)),
        Rule("positions.weight", ("wpe.weight",), (config.max_position_embeddings,)),
        Rule("norm.weight", ("ln_f.weight",), (c,)),
        Rule("norm.bias", ("ln_f.bias",), (c,)),
    ]
    if not config.tie_word_embeddings:
        table.append(Rule("head.weight", ("lm_head.weight",), (config.vocab_size,)))
    norms = (("attn_norm", "ln_1"), ("mlp_norm", "ln_2"))
    linears = (
        ("attn.qkv", "attn.c_attn", 3 * c),
        ("attn.out", "attn.c_proj", c),
        ("mlp.up", "mlp.c_fc", config.intermediate_size),
        ("mlp.down", "mlp.c_proj", c),
    )
    for i in range(config.num_hidden_layers):
        for part in ("weight", "bias"):
            table += [Rule(f"blocks.{i}.{ours}.{part}", (f"h.{i}.{theirs}.{part}",), (c,)) for ours, theirs in norms]
            table += [
                Rule(f"blocks.{i}.{ours}.{part}", (f"h.{i}.{theirs}.{part}",), (rows,), transposed=part == "weight")
                for ours, theirs, rows in linears
            ]
    return table


FAMILY = Family(
    "gpt2", parse, describe, rules, prefix="transformer.", dropped=(r"h\.\d+\.attn\.bias", r"h\.\d+\.attn\.masked_bias")
)
