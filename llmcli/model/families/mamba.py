"""Mamba-2, whose layers are mixers; Nemotron-H, whose layers are mixers, attention or MLPs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.model.config import MAX_LAYERS, LayerType, ModelConfig, MoeConfig
from llmcli.model.families.fields import ACTIVATIONS, Defaults, choice, common, field, wrong
from llmcli.model.families.rules import Family, Names, Rule, Source, linear
from llmcli.model.mixers.config import MambaConfig

UNBOUNDED = 2**20  # the context of models that nothing limits


def parse_mamba2(raw: Mapping[str, Any]) -> ModelConfig:
    """Mamba-2 (Dao & Gu 2024): every layer is a mixer.

    config.json -> ModelConfig, with the defaults of transformers' Mamba2Config.
    """
    absent = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
    shared = common(
        {**raw, **dict.fromkeys(absent, 1)},
        Defaults(
            model_type="mamba2",
            vocab_size=32768,
            hidden_size=4096,
            intermediate_size=1,
            num_hidden_layers=64,
            num_attention_heads=1,
            max_position_embeddings=UNBOUNDED,
            norm_eps=1e-5,
            norm_eps_key="layer_norm_epsilon",
            bos_token_id=0,
            eos_token_id=2,
        ),
    )
    heads, head_dim = field(raw, "num_heads", 128), field(raw, "head_dim", 64)
    expanded = field(raw, "expand", 2) * shared["hidden_size"]
    if heads * head_dim != expanded:
        raise wrong("head_dim", head_dim, f"expand * hidden_size / num_heads ({expanded} / {heads})")
    layers = shared["num_hidden_layers"]
    shared |= {"position": "none", "rope": None, "layer_types": ("recurrent",) * layers}
    mixer = _mixer(raw, heads, head_dim, state_size=field(raw, "state_size", 128), activation_key="hidden_act")
    return ModelConfig(**shared, mixer=mixer, layers_without_mlp=frozenset(range(layers)))


def _mixer(
    raw: Mapping[str, Any], heads: int, head_dim: int, *, state_size: int, activation_key: str, **limits: Any
) -> MambaConfig:
    """The mixer's sizes, under the names that both families have for them."""
    return MambaConfig(
        heads=heads,
        head_dim=head_dim,
        state_size=state_size,
        groups=field(raw, "n_groups", 8),
        kernel=field(raw, "conv_kernel", 4),
        kernel_bias=field(raw, "use_conv_bias", True),
        bias=field(raw, "use_bias", False),
        activation=choice(raw, activation_key, "silu", ACTIVATIONS),
        **({"step_limits": step_limits(raw)} | limits),
    )


KINDS: dict[str, str] = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}  # of Nemotron-H's layers
OTHER_NAMES = {"linear_attention": "mamba", "full_attention": "attention"}


def parse_nemotron_h(raw: Mapping[str, Any]) -> ModelConfig:
    """Nemotron-H (NVIDIA 2025): each layer is a Mamba-2 mixer, attention without positions, an MLP or experts.

    config.json -> ModelConfig, with the defaults of transformers' NemotronHConfig.
    """
    kinds = _kinds(raw)
    if field(raw, "num_hidden_layers", len(kinds)) != len(kinds):
        raise wrong("num_hidden_layers", raw["num_hidden_layers"], f"{len(kinds)}, as many as have a kind")
    old_names = {"head_dim": raw.get("head_dim", raw.get("attention_head_dim"))}
    shared = common(
        {**raw, **old_names, "num_hidden_layers": len(kinds)},
        Defaults(
            model_type="nemotron_h",
            vocab_size=131072,
            hidden_size=4096,
            intermediate_size=21504,
            num_hidden_layers=len(kinds),
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=4096,
            norm_eps=1e-5,
            norm_eps_key="layer_norm_epsilon",
            hidden_act="relu2",
            hidden_act_key="mlp_hidden_act",
            bos_token_id=1,
            eos_token_id=2,
        ),
    )
    types: dict[str, LayerType] = {"mamba": "recurrent", "attention": "full_attention", "mlp": "mlp", "moe": "mlp"}
    mixes = [layer for layer, kind in enumerate(kinds) if kind in ("mamba", "attention")]
    shared |= {"position": "none", "rope": None, "layer_types": tuple(types[kind] for kind in kinds)}
    least = field(raw, "time_step_min", field(raw, "mamba_dt_min", 0.001))
    if not 0 <= least < math.inf:
        raise wrong("time_step_min", least, "a number of at least 0")
    mixer = _mixer(
        raw,
        field(raw, "mamba_num_heads", 128),
        field(raw, "mamba_head_dim", 64),
        state_size=field(raw, "ssm_state_size", 128),
        activation_key="mamba_hidden_act",
        step_limits=(least, math.inf),
    )
    bias = field(raw, "attention_bias", False)
    return ModelConfig(
        **shared,
        gated_mlp=False,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=field(raw, "mlp_bias", False),
        mixer=mixer if "mamba" in kinds else None,
        layers_without_mlp=frozenset(mixes),
        moe=_experts(raw, kinds) if "moe" in kinds else None,
    )


def _kinds(raw: Mapping[str, Any]) -> list[str]:
    """What each layer is, one of the values of KINDS."""
    pattern, listed = raw.get("hybrid_override_pattern"), raw.get("layers_block_type", raw.get("layer_types"))
    if listed is not None:
        entries = listed if isinstance(listed, list) else []
        kinds = [OTHER_NAMES.get(entry, entry) if isinstance(entry, str) else "" for entry in entries]
        key, value, known = "layers_block_type", listed, list(KINDS.values())
    elif pattern is not None:
        kinds = [KINDS.get(entry, "") for entry in pattern] if isinstance(pattern, str) else []
        key, value, known = "hybrid_override_pattern", pattern, list(KINDS)
    else:
        return ["mamba", "moe", "attention", "mlp"]
    if not 1 <= len(kinds) <= MAX_LAYERS or not set(kinds) <= set(KINDS.values()):
        raise wrong(key, value, f"1 to {MAX_LAYERS} of " + " and ".join(known))
    return kinds


def _experts(raw: Mapping[str, Any], kinds: list[str]) -> MoeConfig:
    if raw.get("moe_latent_size") is not None:
        raise LlmcliError("config.json: Nemotron-H with latent experts is not supported", "its other models are")
    return MoeConfig(
        num_experts=field(raw, "n_routed_experts", 8),
        num_experts_per_tok=field(raw, "num_experts_per_tok", 2),
        intermediate_size=field(raw, "moe_intermediate_size", 7688),
        normalize=field(raw, "norm_topk_prob", True),
        normalize_eps=1e-20,
        dense_layers=frozenset(layer for layer, kind in enumerate(kinds) if kind == "mlp"),
        shared_intermediate_size=field(raw, "moe_shared_expert_intermediate_size", 7688),
        scores="sigmoid",
        choice_bias=True,
        scale=field(raw, "routed_scaling_factor", 1.0),
        groups=field(raw, "n_group", 1),
        groups_per_tok=field(raw, "topk_group", 1),
        group_best=2,
    )


def step_limits(raw: Mapping[str, Any]) -> tuple[float, float]:
    """``time_step_limit``, two numbers of which the second may be infinite, as JSON or transformers writes that."""
    limits = raw.get("time_step_limit")
    if limits is None:
        return 0.0, math.inf
    if isinstance(limits, list):
        limits = [math.inf if entry == {"__float__": "Infinity"} else entry for entry in limits]
    if not isinstance(limits, list) or len(limits) != 2 or any(type(x) not in (int, float) for x in limits):
        raise wrong("time_step_limit", limits, "two numbers")
    low, high = map(float, limits)
    if not 0 <= low < high:
        raise wrong("time_step_limit", limits, "two ascending numbers of at least 0")
    return low, high


def mamba_rules(config: ModelConfig, ours: str, stored: str) -> list[Rule]:
    """The rules of a Mamba-2 mixer whose parameters are called ``ours`` and whose tensors are called ``stored``."""
    sizes = config.mixer
    assert isinstance(sizes, MambaConfig)
    shape = (sizes.convolved, 1, sizes.kernel)
    table = [Rule(ours + "kernel", (Source(stored + "conv1d.weight", sizes.convolved, shape=shape),))]
    if sizes.kernel_bias:
        table.append(Rule(ours + "kernel_bias", (Source(stored + "conv1d.bias", sizes.convolved),)))
    heads = {"decay": "A_log", "step_bias": "dt_bias", "skip": "D"}
    table += [Rule(ours + name, (Source(stored + other, sizes.heads),)) for name, other in heads.items()]
    if sizes.norm is not None:
        table.append(Rule(ours + "norm.weight", (Source(stored + "norm.weight", sizes.width),)))
    rows = sizes.width + sizes.convolved + sizes.heads
    table += linear(ours + "inputs", [Source(stored + "in_proj", rows)], bias=sizes.bias)
    return table + linear(ours + "out", [Source(stored + "out_proj", config.hidden_size)], bias=sizes.bias)


MAMBA2_NAMES = Names(
    embedding="backbone.embeddings",
    norm="backbone.norm_f",
    layer="backbone.layers.{}.",
    attn_norm="norm",
    mixer=lambda config, ours, theirs: mamba_rules(config, ours, theirs + "mixer."),
)
NEMOTRON_NAMES = replace(
    MAMBA2_NAMES,
    mlp_norm="norm",
    qkv=("mixer.q_proj", "mixer.k_proj", "mixer.v_proj"),
    out="mixer.o_proj",
    up=("mixer.up_proj",),
    down="mixer.down_proj",
    router="mixer.gate",
    choice_bias="mixer.gate.e_score_correction_bias",
    expert="mixer.experts.{}.",
    expert_up=("up_proj",),
    shared_up=("mixer.shared_experts.up_proj",),
    shared_down="mixer.shared_experts.down_proj",
)
MAMBA2 = Family(
    "mamba2",
    parse_mamba2,
    MAMBA2_NAMES.rules,
    renamed=((r"^backbone\.embedding\.", "backbone.embeddings."),),
    tokenizer_class="GPTNeoXTokenizer",
)
NEMOTRON_H = Family(
    "nemotron_h",
    parse_nemotron_h,
    NEMOTRON_NAMES.rules,
    renamed=((r"^model\.", "backbone."),),
    dropped=(r"mtp\..*",),  # layers that predict several tokens
)
