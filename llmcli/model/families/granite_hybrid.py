"""Granite 4: Mamba-2 in most layers, attention without positions in the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmcli.model.config import LayerType, ModelConfig, MoeConfig
from llmcli.model.families.fields import Defaults, common, field, optional, recurrent_layers, wrong
from llmcli.model.families.llama import multipliers
from llmcli.model.families.mamba import mamba_rules, step_limits
from llmcli.model.families.rules import Family, Names
from llmcli.model.mixers.config import MambaConfig

if TYPE_CHECKING:
    from llmcli.model.activations import Activation


def parse_granite_hybrid(raw: Mapping[str, Any]) -> ModelConfig:
    """Granite 4 (IBM 2025): Granite 3's multipliers, and Mamba-2 in most layers.

    In models with experts, the MLP that the others have serves every token.

    config.json -> ModelConfig, with the defaults of transformers' GraniteMoeHybridConfig.
    """
    shared = common(
        raw,
        Defaults(
            model_type="granitemoehybrid",
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=2048,
            bos_token_id=1,
            eos_token_id=2,
        ),
    )
    experts, width = optional(raw, "num_local_experts", 8, int), shared["intermediate_size"]
    shared["intermediate_size"] = field(raw, "shared_intermediate_size", 1024)
    if raw.get("position_embedding_type") != "rope":
        shared |= {"position": "none", "rope": None}
    bias, types = field(raw, "attention_bias", False), _layer_types(raw, shared["num_hidden_layers"])
    mixer = _mamba(raw, shared["hidden_size"], shared["activation"]) if "recurrent" in types else None
    moe = (
        MoeConfig(
            num_experts=experts,
            num_experts_per_tok=field(raw, "num_experts_per_tok", 2),
            intermediate_size=width,
            normalize=True,
            shared_intermediate_size=shared["intermediate_size"],
        )
        if experts
        else None
    )
    return ModelConfig(
        **shared, **multipliers(raw), qkv_bias=bias, out_bias=bias, layer_types=types, mixer=mixer, moe=moe
    )


def _layer_types(raw: Mapping[str, Any], layers: int) -> tuple[LayerType, ...]:
    """``layer_types``, under transformers' names or under those that published files have."""
    types = raw.get("layer_types", raw.get("layers_block_type"))
    names = {"mamba": "linear_attention", "attention": "full_attention"}
    if isinstance(types, list):
        types = [names.get(entry, entry) if isinstance(entry, str) else entry for entry in types]
    return recurrent_layers({"layer_types": types}, layers, "linear_attention", lambda layer: True)


def _mamba(raw: Mapping[str, Any], hidden: int, activation: Activation) -> MambaConfig:
    heads, width = field(raw, "mamba_n_heads", 128), field(raw, "mamba_expand", 2) * hidden
    head_dim = width // max(heads, 1) if raw.get("mamba_d_head", "auto") in ("auto", None) else raw["mamba_d_head"]
    if type(head_dim) is not int or head_dim * heads != width:
        raise wrong("mamba_d_head", head_dim, f"mamba_expand * hidden_size / mamba_n_heads ({width} / {heads})")
    return MambaConfig(
        heads=heads,
        head_dim=head_dim,
        state_size=field(raw, "mamba_d_state", 256),
        groups=field(raw, "mamba_n_groups", 1),
        kernel=field(raw, "mamba_d_conv", 4),
        kernel_bias=field(raw, "mamba_conv_bias", True),
        bias=field(raw, "mamba_proj_bias", False),
        step_limits=step_limits(raw),
        activation=activation,
    )


UP, DOWN = ("shared_mlp.input_linear",), "shared_mlp.output_linear"
NAMES = Names(
    up=UP,
    down=DOWN,
    router="block_sparse_moe.router.layer",
    expert="block_sparse_moe.experts.{}.",
    expert_up=("gate_up_proj",),
    shared_up=UP,
    shared_down=DOWN,
    mixer=lambda config, ours, theirs: mamba_rules(config, ours, theirs + "mamba."),
)
GRANITE_HYBRID = Family("granitemoehybrid", parse_granite_hybrid, NAMES.rules, tokenizer_class="", stacks_experts=True)
