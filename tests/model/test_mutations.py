"""Proof that the parity tests can fail: every plausible mistake changes a family's logits."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from llmcli.model import activations, attention, mlp, positions, transformer
from llmcli.model.attention import Attention, Projection
from llmcli.model.cache import KVCache
from llmcli.model.config import AlibiConfig, ModelConfig, RopeConfig
from llmcli.model.families import FAMILIES, falcon, glm, gpt, gpt_oss, llama4, mistral, qwen_next
from llmcli.model.families.falcon import alibi_slopes
from llmcli.model.families.rules import Names, Rule
from llmcli.model.layers import Norm
from llmcli.model.mlp import MLP, MLPAndExperts, MoE
from llmcli.model.per_layer import LayerInput, LayerInputs
from llmcli.model.transformer import Transformer
from tests.parity import CLOSE, DECODED, IDS, WRONG, parity_error
from tests.tiny import CASES, LATENT, ROPE_ORIGINAL, WINDOW, TinyFactory

Mutation = Callable[[Transformer], Any]  # returns another model, or changes its argument in place

GEMMA = ["gemma2", "gemma3_text", "gemma3_text-linear"]
GEMMA3 = GEMMA[1:]
NEOX = ["gpt_neox", "gpt_neox-serial"]
GEMMA4_MOE = ["gemma4_text-moe"]
GEMMA4 = ["gemma4_text", *GEMMA4_MOE]
POST_NORMED = [*GEMMA, *GEMMA4, "olmo2", "olmo3", "exaone4", "glm4"]
COHERE = ["cohere", "cohere-normed", "cohere2"]
DELTA_NETS = ["qwen3_5_text", "qwen3_next", "qwen3_5_moe_text"]
PARTIAL = ["phi3-longrope", *NEOX, "stablelm", "stablelm-parallel", "glm4", "phi", "gptj", *DELTA_NETS]
GATED_SHARED = ["qwen2_moe", "qwen3_next", "qwen3_5_moe_text"]
SHARED = [*GATED_SHARED, "granitemoehybrid-experts", *LATENT]  # with an expert for every token
MOE = ["mixtral", "qwen3_moe", "olmoe", "gpt_oss", "lfm2_moe", "gemma4_text-moe", *SHARED]
MIXED = [  # windowed and full layers
    "qwen2-windows",
    "qwen3-windows",
    "smollm3-windows",
    "gpt_oss",
    "olmo3",
    "cohere2",
    "exaone4",
    "gpt_neo",
    *GEMMA,
]
WINDOWED = ["mistral", *MIXED, "phi3", "starcoder2", "mixtral", "qwen3_moe"]
QK_NORMED = [
    "qwen3",
    "qwen3-windows",
    *GEMMA3,
    "qwen3_moe",
    "olmo2",
    "olmoe",
    "stablelm-parallel",
    "cohere-normed",
    *DELTA_NETS,
    "lfm2_moe",
    "olmo3",
    "exaone4",
    "apertus",
]
ATTENDING = [name for name in CASES if name != "mamba2"]
UNGATED = (
    *("gpt2", "gpt_neo", "gptj", "gpt_neox", "starcoder2", "arcee", "nanochat", "apertus", "opt", "phi"),
    *("bloom", "falcon", "mamba2", "nemotron_h"),
)
LEARNED = ["gpt2", "gpt2-untied", "gpt_neo", "opt"]  # positions
FIXED_EPS = ("olmo", "opt")
GATED = [name for name in CASES if name.split("-")[0] not in UNGATED]
ROPED = [name for name in CASES if name not in (*LEARNED, "bloom", "granitemoehybrid", "mamba2", "nemotron_h")]
SCALED_ROPE = [
    "llama-linear",
    "llama-dynamic",
    "llama-llama3",
    "llama-yarn",
    "llama-yarn-mscale",
    "gemma3_text-linear",
    "gpt_oss",
    "olmo3",
    "ministral3",
    "apertus",
    "deepseek_v2",
    "deepseek_v3",
]
YARNS = ["llama-yarn", "llama-yarn-mscale", "gpt_oss", "olmo3", "ministral3", "deepseek_v2", "deepseek_v3"]
LLAMA3_ROPES = ["llama-llama3", "apertus"]
LOCAL_ROPE = [*GEMMA3, "olmo3"]
PARTLY_ROPED = ["smollm3", "smollm3-windows", "cohere2", "exaone4"]
MODERN = [
    *("olmo3", "ministral3", "seed_oss", "arcee", "cohere2", "exaone4", "glm4", "ernie4_5", "hunyuan_v1_dense"),
    *("apertus", "gpt_oss", *LATENT),
]
CUTS = [None, [40], DECODED]  # one pass, two passes, token by token
CUTS_IDS = ["whole", "chunks", "decoded"]


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_matters(tiny: TinyFactory, name: str) -> None:
    """Resetting any parameter to transformers' initial value, or to zero, changes the logits."""
    case = tiny(name)
    model = case.load()
    assert parity_error(model, case) <= CLOSE
    for parameter_name, parameter in model.named_parameters():
        right = parameter.clone()
        parameter.fill_(1.0 if "norm.weight" in parameter_name and model.config.norm_offset == 0 else 0.0)
        model.to(model.device)  # so that the compiled engine drops its copies
        assert parity_error(model, case) > WRONG, parameter_name
        parameter.copy_(right)


# A different config with the same weights.


def with_config(config: ModelConfig, model: Transformer) -> Transformer:
    """A model with the same weights and another config, which may use only some of them but no others."""
    other = Transformer(config).eval()
    missing, _ = other.load_state_dict(model.state_dict(), strict=False)
    assert missing == []
    return other


def rebuilt(model: Transformer, **changes: Any) -> Transformer:
    config = dataclasses.replace(model.config, **changes)
    assert config != model.config, "the config has not changed"
    return with_config(config, model)


@pytest.mark.parametrize("name", CASES)
def test_rebuilding_without_a_change_keeps_parity(tiny: TinyFactory, name: str) -> None:
    """So the tests below detect the change of config, not the rebuilding."""
    case = tiny(name)
    model = case.load()
    assert parity_error(with_config(model.config, model), case) <= CLOSE


def changed(**changes: Any) -> Mutation:
    return lambda model: rebuilt(model, **changes)


def changed_rope(which: str = "rope", **changes: Any) -> Mutation:
    return lambda model: rebuilt(model, **{which: dataclasses.replace(getattr(model.config, which), **changes)})


def serial_or_parallel(model: Transformer) -> Transformer:
    return rebuilt(model, parallel_residual=not model.config.parallel_residual)


def swap_local_and_global(model: Transformer) -> Transformer:
    return rebuilt(model, rope=model.config.local_rope, local_rope=model.config.rope)


def other_activation(model: Transformer) -> Transformer:
    others = {
        "silu": "gelu",
        "gelu": "gelu_tanh",
        "gelu_tanh": "gelu",
        "gelu_sigmoid": "silu",
        "relu_squared": "relu",
        "xielu": "gelu",
        "relu": "relu_squared",
    }
    return rebuilt(model, activation=others[model.config.activation])


def shifted_layer_types(model: Transformer) -> Transformer:
    types = model.config.layer_types
    return rebuilt(model, layer_types=(*types[1:], types[0]))


def full_attention(model: Transformer) -> Transformer:
    return rebuilt(model, layer_types=())


def windows_everywhere(model: Transformer) -> Transformer:
    return rebuilt(model, layer_types=("sliding_attention",) * model.config.num_hidden_layers)


def shifted_layers_without_rope(model: Transformer) -> Transformer:
    layers = model.config.num_hidden_layers
    return rebuilt(
        model, layers_without_rope=frozenset((layer + 1) % layers for layer in model.config.layers_without_rope)
    )


def other_experts(**changes: Any) -> Mutation:
    return lambda model: rebuilt(model, moe=dataclasses.replace(_moe(model.config), **changes))


def flip_normalize(model: Transformer) -> Transformer:
    moe = _moe(model.config)
    return rebuilt(model, moe=dataclasses.replace(moe, normalize=not moe.normalize))


def _moe(config: ModelConfig) -> Any:
    assert config.moe is not None
    return config.moe


def short_for_long(model: Transformer) -> Transformer:
    right = model.config.rope
    assert right is not None
    swapped = dataclasses.replace(right, short_factor=right.long_factor, long_factor=right.short_factor)
    return rebuilt(model, rope=swapped)


def all_features_rotated(model: Transformer) -> Transformer:
    right = model.config.rope
    assert right is not None
    more = (1.0,) * (model.config.head_dim // 2 - len(right.long_factor)) if right.long_factor else ()
    factors = {"short_factor": right.short_factor + more, "long_factor": right.long_factor + more}
    return rebuilt(model, rope=dataclasses.replace(right, partial_rotary_factor=1.0, **factors))


def other_norm(model: Transformer) -> Transformer:
    return rebuilt(model, norm="layer") if model.config.norm == "rms" else rebuilt(model, norm="rms", norm_bias=False)


def serial(model: Transformer) -> Transformer:
    """The MLP after attention instead of parallel to it, with a copy of the shared norm."""
    other = Transformer(dataclasses.replace(model.config, parallel_residual=False, shared_norm=False)).eval()
    weights = dict(model.state_dict())
    weights |= {name.replace("attn_norm", "mlp_norm"): value for name, value in weights.items() if "attn_norm" in name}
    other.load_state_dict(weights)
    return other


def pre_instead_of_post_norms(model: Transformer) -> Transformer:
    """Norms before attention and MLP instead of after them."""
    other = Transformer(dataclasses.replace(model.config, pre_norm=True, post_norm=False)).eval()
    other.load_state_dict({name.replace("_post_norm", "_norm"): value for name, value in model.state_dict().items()})
    return other


# A name for each mistake: the mutation, and the cases whose logits it must change.
CONFIGS: dict[str, tuple[Mutation, list[str]]] = {
    "eps": (changed(norm_eps=1e-6), [name for name in CASES if name not in FIXED_EPS]),
    "rms or layer norm": (other_norm, list(CASES)),
    "activation": (other_activation, ATTENDING),
    "no norm offset": (changed(norm_offset=0.0), ["gemma", *GEMMA, *DELTA_NETS]),
    "pre-norms instead of post-norms": (pre_instead_of_post_norms, ["olmo2", "olmo3", "exaone4"]),
    "theta": (changed_rope(theta=777.0), ROPED),
    "all features rotated": (all_features_rotated, PARTIAL),
    "rope not scaled": (changed_rope(rope_type="default"), [*SCALED_ROPE, "phi3-longrope"]),
    "factor": (changed_rope(factor=5.0), SCALED_ROPE),
    "original context": (
        changed_rope(original_max_position_embeddings=24),
        ["llama-dynamic", *LLAMA3_ROPES, *YARNS],
    ),
    "low_freq_factor": (changed_rope(low_freq_factor=1.5), LLAMA3_ROPES),
    "high_freq_factor": (changed_rope(high_freq_factor=3.0), LLAMA3_ROPES),
    "beta_fast": (changed_rope(beta_fast=4.0), YARNS),
    "beta_slow": (changed_rope(beta_slow=0.5), YARNS),
    "truncated": (changed_rope(truncate=True), ["llama-yarn-mscale", "gpt_oss"]),
    "not truncated": (changed_rope(truncate=False), ["llama-yarn"]),
    "no attention factor": (
        changed_rope(attention_factor=1.0),
        [*(name for name in YARNS if name != "deepseek_v3"), "phi3-longrope"],
    ),
    "short for long factors": (short_for_long, ["phi3-longrope"]),
    "never long": (changed_rope(original_max_position_embeddings=4096), ["phi3-longrope"]),
    "local theta": (changed_rope("local_rope", theta=777.0), [*LOCAL_ROPE, *GEMMA4]),
    "no local rope": (changed(local_rope=None), LOCAL_ROPE),
    "local and global swapped": (swap_local_and_global, LOCAL_ROPE),
    "rope everywhere": (changed(layers_without_rope=frozenset()), PARTLY_ROPED),
    "rope in other layers": (shifted_layers_without_rope, PARTLY_ROPED),
    "rotated forwards": (changed_rope(backwards=False), ["nanochat"]),
    "rotated backwards": (changed_rope(backwards=True), MODERN),
    "queries do not grow": (changed(query_scale_beta=0.0), ["ministral3", "llama4_text"]),
    "queries grow more": (changed(query_scale_beta=0.7), ["ministral3", "llama4_text"]),
    "queries grow later": (changed(floor_scale=17), ["llama4_text"]),
    "queries of rotated layers grow": (changed(floor_scale=None), ["llama4_text"]),
    "windows for chunks": (changed(attention_chunks=False), ["llama4_text"]),
    "norm before rope": (changed(qk_norm_after_rope=False), ["hunyuan_v1_dense"]),
    "norm after rope": (changed(qk_norm_after_rope=True), ["olmo3", "exaone4", "apertus"]),
    "embedding not normalized": (changed(embedding_norm=False), ["nanochat", "bloom"]),
    "slopes of more heads": (changed(alibi=AlibiConfig(alibi_slopes(8)[:6])), ["bloom"]),
    "slopes in another order": (changed(alibi=AlibiConfig(tuple(sorted(alibi_slopes(6))))), ["bloom"]),
    "slopes scaled": (changed(alibi=AlibiConfig(alibi_slopes(6), scale=8**-0.5)), ["bloom"]),
    "no windows": (full_attention, [*WINDOWED, "llama4_text"]),
    "windows everywhere": (windows_everywhere, [*MIXED, "llama4_text"]),
    "layer types shifted": (shifted_layer_types, [*MIXED, "llama4_text"]),
    "q and k not normalized": (changed(qk_norm=None), [*QK_NORMED, *GEMMA4]),
    "values not normalized": (changed(value_norm=False), GEMMA4),
    "slow pairs not moving": (changed_rope(partial_rotary_factor=0.5), GEMMA4),
    "only the first features paired": (changed_rope(rope_type="default"), GEMMA4),
    "no factor of a layer": (changed(layer_scalar=False), GEMMA4),
    "no per-layer embeddings": (
        changed(hidden_size_per_layer_input=None, vocab_size_per_layer_input=None),
        ["gemma4_text"],
    ),
    "q and k of rotated layers not normalized": (changed(qk_norm=None), ["llama4_text"]),
    "all layers rotated": (changed(layers_without_rope=frozenset()), ["llama4_text"]),
    "weights of experts multiply what they compute": (other_experts(weighs_inputs=False), ["llama4_text"]),
    "experts' scores by softmax": (other_experts(scores="softmax"), ["llama4_text"]),
    "experts' weights normalized": (other_experts(normalize=True), ["llama4_text"]),
    "q and k normalized per head": (changed(qk_norm="heads"), ["olmo2", "olmo3", "olmoe"]),
    "q and k normalized together": (changed(qk_norm="full"), ["stablelm-parallel", "cohere-normed"]),
    "attention scale": (changed(attention_scale=None), ["gemma2", "gemma3_text", *GEMMA4, "granite", "gpt_neo"]),
    "q, k and v not bounded": (changed(qkv_limit=None), ["olmo"]),
    "other bound of q, k and v": (changed(qkv_limit=2.2), ["olmo"]),
    "attention softcap": (changed(attention_softcap=None), ["gemma2"]),
    "logit softcap": (changed(logit_softcap=None), ["gemma2", "gemma4_text", "nanochat"]),
    "embedding scale": (changed(embedding_scale=1.0), ["gemma", *GEMMA, *GEMMA4, "granite"]),
    "residual scale": (changed(residual_scale=1.0), ["granite"]),
    "logit scale": (changed(logit_scale=1.0), ["granite", *COHERE]),
    "serial or parallel": (serial_or_parallel, NEOX),
    "serial": (serial, ["stablelm-parallel", *COHERE, "phi", "gptj", "falcon", "falcon-grouped"]),
    "no head bias": (changed(head_bias=False), ["phi", "gptj"]),
    "shared norm": (changed(shared_norm=True), ["gpt_neox"]),
    "no sinks": (changed(attention_sinks=False), ["gpt_oss"]),
    "gate not bounded": (changed(gate_limit=None), ["gpt_oss"]),
    "other bound of the gate": (changed(gate_limit=1.7), ["gpt_oss"]),
    "nothing added to up": (changed(up_offset=0.0), ["gpt_oss"]),
    "no shared expert": (other_experts(shared_intermediate_size=None, shared_gate=False), [*SHARED, "llama4_text"]),
    "shared expert not gated": (other_experts(shared_gate=False), GATED_SHARED),
    "softmax scores": (other_experts(scores="softmax"), ["lfm2_moe"]),
    "no choice bias": (other_experts(choice_bias=False), ["lfm2_moe"]),
    "expert weights not scaled": (other_experts(scale=1.0), ["lfm2_moe"]),
    "no factors of experts": (other_experts(expert_scale=False), GEMMA4_MOE),
    "router's input not normalized": (other_experts(router_norm=False), GEMMA4_MOE),
    "no router bias": (other_experts(router_bias=False), ["gpt_oss"]),
    "expert weights normalized or not": (flip_normalize, MOE),
    "one expert": (other_experts(num_experts_per_tok=1), MOE),
    "three experts": (other_experts(num_experts_per_tok=3), MOE),
}


def rows(table: dict[str, tuple[Any, list[str]]]) -> list[Any]:
    """A table's pairs of a case and a mutation, as pytest parameters."""
    return [
        pytest.param(name, mutation, id=f"{what}-{name}") for what, (mutation, names) in table.items() for name in names
    ]


@pytest.mark.parametrize(("name", "mutate"), rows(CONFIGS))
def test_a_wrong_config_shows(tiny: TinyFactory, name: str, mutate: Mutation) -> None:
    case = tiny(name)
    assert parity_error(mutate(case.load()), case) > WRONG


@pytest.mark.parametrize("name", [*WINDOWED, *GEMMA4, "llama4_text"])
@pytest.mark.parametrize("offset", [-1, 1])
@pytest.mark.parametrize("cuts", CUTS, ids=CUTS_IDS)
def test_a_window_off_by_one_shows(tiny: TinyFactory, name: str, offset: int, cuts: list[int] | None) -> None:
    case = tiny(name)
    assert parity_error(rebuilt(case.load(), sliding_window=WINDOW + offset), case, cuts) > WRONG


# Weights in the wrong places.


def exchange(weight: Tensor, start: int, middle: int, end: int) -> None:
    """Exchange the rows start .. middle-1 and middle .. end-1 of a stacked matrix."""
    weight[start:end] = torch.cat((weight[middle:end], weight[start:middle]))


def attentions(model: Transformer) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]


def rows_of(attn: Attention) -> tuple[int, int, int]:
    """Where the keys and the values begin in the stacked matrix, and where it ends."""
    queries, keys, values = attn.projected
    gates = queries if attn.gated else 0
    ends = itertools.accumulate((queries + gates, keys, values))
    first, second, last = (count * attn.head_dim for count in ends)
    return first, second, last


def swap_head_halves(model: Transformer) -> None:
    """The halves of every query and key exchanged, so that they rotate in the wrong direction."""
    for attn in attentions(model):
        D = attn.head_dim
        for start in range(0, rows_of(attn)[1], D):
            exchange(attn.qkv.weight, start, start + D // 2, start + D)


def interleave_heads(model: Transformer) -> None:
    """The layout of rotary pairs in the original Llama files: adjacent features."""
    for attn in attentions(model):
        D = attn.head_dim
        order = torch.arange(D).view(2, D // 2).T.flatten()
        for start in range(0, rows_of(attn)[1], D):
            rows = attn.qkv.weight[start : start + D]
            rows.copy_(rows[order])


def swap_queries_and_keys(model: Transformer) -> None:
    for attn in attentions(model):
        exchange(attn.qkv.weight, 0, model.config.q_size, 2 * model.config.q_size)


def swap_keys_and_values(model: Transformer) -> None:
    for attn in attentions(model):
        exchange(attn.qkv.weight, *rows_of(attn))


def swap_key_value_heads(model: Transformer) -> None:
    for attn in attentions(model):
        D, edges = attn.head_dim, rows_of(attn)
        for start, end in itertools.pairwise(edges):
            if end > start:
                exchange(attn.qkv.weight, start, start + D, start + 2 * D)


def swap_gate_and_up(model: Transformer) -> None:
    for module in (module for module in model.modules() if isinstance(module, MLP)):
        wide = module.up.weight.shape[0] // 2
        exchange(module.up.weight, 0, wide, 2 * wide)


def swap_experts(model: Transformer) -> None:
    for moe in (module for module in model.modules() if isinstance(module, MoE)):
        moe.experts = torch.nn.ModuleList([moe.experts[1], moe.experts[0], *moe.experts[2:]])


def swap_norms(one: str, other: str) -> Mutation:
    def swap(model: Transformer) -> None:
        for block in model.blocks:
            left, right = getattr(block, one), getattr(block, other)
            setattr(block, one, right)
            setattr(block, other, left)

    return swap


def swap_curvatures(model: Transformer) -> None:
    for block in model.blocks:
        block.mlp.curve.copy_(block.mlp.curve.flip(0))


def layers_inputs_exchanged(model: Transformer) -> None:
    """The table's numbers of each layer are those of the next one."""
    size = model.config.hidden_size_per_layer_input
    model.inputs.embedding.weight.copy_(model.inputs.embedding.weight.roll(size, dims=1))


def positions_off_by_one(model: Transformer) -> None:
    model.positions.weight.copy_(model.positions.weight.roll(-1, dims=0))


STACKED = [name for name in ATTENDING if name not in LATENT]  # with one matrix for queries, keys and values
PRE_NORMED = [
    name
    for name in CASES
    if not name.startswith(("olmo2", "olmo3", "cohere", "exaone4", "nanochat", "stablelm-parallel"))
    and name not in ("olmo", "phi", "gptj", "falcon")
]
EQUAL_HEADS = ["llama-tied", "gpt2", "gpt2-untied", *NEOX, "olmo2", "granite", "gpt_neo", "gptj", "opt", "bloom"]
WEIGHTS: dict[str, tuple[Mutation, list[str]]] = {
    "head halves": (swap_head_halves, [name for name in ROPED if name in STACKED and name not in PARTIAL]),
    "heads interleaved": (interleave_heads, [name for name in ROPED if name in STACKED]),
    "queries and keys": (swap_queries_and_keys, EQUAL_HEADS),
    "keys and values": (swap_keys_and_values, STACKED),
    "key heads": (swap_key_value_heads, [name for name in STACKED if name not in ("llama-llama3", "phi3-longrope")]),
    "gate and up": (swap_gate_and_up, GATED),
    "experts": (swap_experts, MOE),
    "norms": (swap_norms("attn_norm", "mlp_norm"), PRE_NORMED),
    "pre and post norm of attention": (swap_norms("attn_norm", "attn_post_norm"), [*GEMMA, *GEMMA4, "glm4"]),
    "pre and post norm of the MLP": (swap_norms("mlp_norm", "mlp_post_norm"), [*GEMMA, *GEMMA4, "glm4"]),
    "post norms": (swap_norms("attn_post_norm", "mlp_post_norm"), POST_NORMED),
    "curvatures": (swap_curvatures, ["apertus"]),
    "positions": (positions_off_by_one, LEARNED),
    "inputs of layers": (layers_inputs_exchanged, ["gemma4_text"]),
}


@pytest.mark.parametrize(("name", "mutate"), rows(WEIGHTS))
def test_weights_in_the_wrong_place_show(tiny: TinyFactory, name: str, mutate: Mutation) -> None:
    case = tiny(name)
    model = case.load()
    mutate(model)
    assert parity_error(model, case) > WRONG


def inputs_not_by_head(config: ModelConfig, ours: str, theirs: str) -> list[Rule]:
    """The rules of Qwen3-Next's delta net, if all queries came before all keys, and so on."""
    mixer = qwen_next.NEXT_NAMES.mixer
    assert mixer is not None
    stored = [(rule.target, rule.sources) for rule in mixer(config, ours, theirs)]
    return [Rule(target, tuple(dataclasses.replace(each, parts=()) for each in sources)) for target, sources in stored]


RULES: dict[str, tuple[Callable[[ModelConfig], Any], list[str]]] = {
    "qkv not stacked by head": (dataclasses.replace(gpt.GPT_NEOX_NAMES, by_head=False).rules, NEOX),
    "queries, keys and values not by head": (dataclasses.replace(falcon.NAMES, by_head=False).rules, ["bloom"]),
    "queries, keys and values not by group": (
        dataclasses.replace(falcon.NAMES, by_head=False, attn_norm="ln_attn", mlp_norm="ln_mlp").rules,
        ["falcon-grouped"],
    ),
    "the norms of attention and the MLP": (
        dataclasses.replace(falcon.NAMES, attn_norm="ln_mlp", mlp_norm="ln_attn").rules,
        ["falcon-grouped"],
    ),
    "pairs not interleaved": (Names().rules, [*COHERE, "ernie4_5"]),
    "pairs of Llama 4 not interleaved": (dataclasses.replace(llama4.NAMES, interleaved=False).rules, ["llama4_text"]),
    "part's pairs not interleaved": (dataclasses.replace(glm.GLM4_NAMES, interleaved=False).rules, ["glm4"]),
    "first features' pairs not interleaved": (dataclasses.replace(gpt.GPTJ_NAMES, interleaved=False).rules, ["gptj"]),
    "gate and up not interleaved": (dataclasses.replace(gpt_oss.NAMES, up_interleaved=False).rules, ["gpt_oss"]),
    "inputs of a delta net not by head": (
        dataclasses.replace(qwen_next.NEXT_NAMES, mixer=inputs_not_by_head).rules,
        ["qwen3_next"],
    ),
    "gate and up": (dataclasses.replace(mistral.MIXTRAL_NAMES, expert_up=("w3", "w1")).rules, ["mixtral"]),
}


@pytest.mark.parametrize(("name", "rules"), rows(RULES))
def test_wrong_tensor_rules_show(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, name: str, rules: Callable[[ModelConfig], Any]
) -> None:
    case = tiny(name)
    family = FAMILIES[name.split("-")[0]]
    monkeypatch.setitem(FAMILIES, family.model_type, dataclasses.replace(family, rules=rules))
    assert parity_error(case.load(), case) > WRONG


# Wrong code.

Patch = Callable[[pytest.MonkeyPatch], None]


def replaced(owner: Any, name: str, function: Callable[..., Any]) -> Patch:
    return lambda monkeypatch: monkeypatch.setattr(owner, name, function)


def rotate_the_end(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotates the last features of a head instead of the first."""
    kept = x.shape[-1] - cos.shape[-1]
    return torch.cat((x[..., :kept], positions.rotate(x[..., kept:], cos, signed_sin)), dim=-1)


def rotate_backwards(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """The first head rotated backwards. (Rotating all heads backwards would change no score.)"""
    return torch.cat((positions.rotate(x[:, :1], cos, -signed_sin), positions.rotate(x[:, 1:], cos, signed_sin)), dim=1)


def norm_after_rope(self: Attention, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> Projection:
    q_norm, k_norm, self.q_norm, self.k_norm = self.q_norm, self.k_norm, None, None
    q, k, v, gate = PROJECT(self, x, angles)
    self.q_norm, self.k_norm = q_norm, k_norm
    assert q_norm is not None
    assert k_norm is not None
    q, k = (attention._normed(norm, t) for norm, t in ((q_norm, q), (k_norm, k)))
    return Projection(q, k, v, gate)


def softcap_after_mask(
    q: Tensor, k: Tensor, mask: Tensor | None, rows: slice | None, *, scale: float, softcap: float, **_: None
) -> Tensor:
    """Masked positions get the score -softcap instead of -inf."""
    mask = positions.causal_mask(k.shape[2] - q.shape[2], q.shape[2], q.device) if mask is None else mask
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = (q @ k.transpose(-2, -1) * scale).masked_fill(~mask, float("-inf"))
    return (softcap * torch.tanh(scores / softcap)).softmax(dim=-1)


def uniform_weights(self: MoE, tokens: Tensor) -> tuple[Tensor, Tensor]:
    weights, chosen = ROUTE(self, tokens)
    return torch.full_like(weights, 1 / self.per_token), chosen


def weights_among_the_chosen(self: MoE, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over the logits of the chosen experts only, which is equivalent to normalizing their weights."""
    logits, chosen = self.router(tokens).topk(self.per_token, dim=-1)
    return logits.softmax(dim=-1), chosen


def biased_weights(self: MoE, tokens: Tensor) -> tuple[Tensor, Tensor]:
    weights, chosen = (self.router(tokens).sigmoid() + self.choice_bias).topk(self.per_token, dim=-1)
    return weights / weights.sum(dim=-1, keepdim=True) * self.moe.scale, chosen


def gated_by_silu(self: MoE, shared: MLP, tokens: Tensor) -> Tensor:
    out: Tensor = shared(tokens) * activations.ACTIVATIONS["silu"](self.shared_gate(tokens))
    return out


def inverted_llama3(frequencies: Tensor, config: RopeConfig) -> Tensor:
    """llama3's scaling with the ramp between the bands inverted."""
    right = LLAMA3(frequencies, config)
    between = (right != frequencies) & (right != frequencies / config.factor)
    assert between.any()
    return torch.where(between, frequencies * (1 + 1 / config.factor) - right, right)


def inverted_yarn(frequencies: Tensor, config: RopeConfig, rotated: int) -> Tensor:
    """YaRN's ramp from slow pairs to fast ones."""
    return frequencies * (1 + 1 / config.factor) - YARN(frequencies, config, rotated)


def contribution_without_norm(self: transformer.Block, out: Tensor, norm: Norm | None) -> Tensor:
    """No norm after attention and MLP."""
    return out


LLAMA3, YARN = positions._llama3, positions._yarn
PROJECT, ROUTE = Attention.project, MoE.route
APPENDED = KVCache.appended
XIELU, QUERY_SCALE, UNROTATED_SCALE = activations.xielu, positions.query_scale, positions.unrotated_scale


def xielu_without_linear_part(x: Tensor, curve: Tensor) -> Tensor:
    return XIELU(x, curve) - 0.5 * x


def late_unrotated_scale(config: ModelConfig, position: Tensor) -> Tensor | None:
    return UNROTATED_SCALE(config, position - 1)


def late_query_scale(config: ModelConfig, position: Tensor) -> Tensor | None:
    return QUERY_SCALE(config, position - 1)


def inputs_without(*, table: float = 1.0, projection: float = 1.0, mixed: float = 1.0) -> Callable[..., Tensor]:
    """The layers' inputs with other factors."""

    def forward(self: LayerInputs, ids: Tensor, x: Tensor) -> Tensor:
        shape = (*ids.shape, *self.shape)
        projected = self.norm((self.projection(x) * projection * x.shape[-1] ** -0.5).view(shape))
        looked_up = self.embedding(ids).view(shape) * table * self.shape[1] ** 0.5
        inputs: Tensor = (projected + looked_up) * mixed * 2**-0.5
        return inputs

    return forward


def input_gate_not_activated(self: LayerInput, x: Tensor, given: Tensor) -> Tensor:
    out: Tensor = self.norm(self.out(self.gate(x) * given))
    return out


def input_not_normalized(self: LayerInput, x: Tensor, given: Tensor) -> Tensor:
    out: Tensor = self.out(self.activate(self.gate(x)) * given)
    return out


def values_not_of_the_shared_layer(self: KVCache, layer: int, count: int) -> tuple[Tensor, Tensor]:
    keys, values = APPENDED(self, layer, count)
    return keys, values.roll(1, dims=2)


def values_after_norm(self: Attention, x: Tensor, placement: positions.Placement) -> Projection:
    """Values that are the normalized and rotated keys, where they have no matrix."""
    projected = PROJECT(self, x, placement)
    return projected if self.projected[2] else projected._replace(v=projected.k)


def routed_by_the_experts_input(self: MLPAndExperts, x: Tensor) -> Tensor:
    by_mlp: Tensor = self.mlp_post_norm(self.mlp(self.mlp_norm(x)))
    return by_mlp + self.moe_post_norm(self.moe(self.moe_norm(x)))


def not_normalized_after(part: str) -> Callable[..., Tensor]:
    """No norm after the MLP, or after the experts beside it."""

    def forward(self: MLPAndExperts, x: Tensor) -> Tensor:
        by_mlp, by_experts = self.mlp(self.mlp_norm(x)), self.moe(self.moe_norm(x), routed_by=x)
        by_mlp = by_mlp if part == "mlp" else self.mlp_post_norm(by_mlp)
        return by_mlp + (by_experts if part == "moe" else self.moe_post_norm(by_experts))

    return forward


def only_the_gate_bounded(self: MLP, x: Tensor) -> Tensor:
    gate, up = self.up(x).chunk(2, dim=-1)
    out: Tensor = self.down(activations.ACTIVATIONS[self.activation](gate.clamp(max=self.limit)) * (up + self.offset))
    return out


def gate_bounded_below(self: MLP, x: Tensor) -> Tensor:
    gate, up = self.up(x).clamp(-self.limit, self.limit).chunk(2, dim=-1)
    out: Tensor = self.down(activations.ACTIVATIONS[self.activation](gate) * (up + self.offset))
    return out


def falling_scores(alibi: AlibiConfig, count: int, device: torch.device) -> Tensor:
    return -positions.alibi_scores(alibi, count, device)


def no_scores(alibi: AlibiConfig, count: int, device: torch.device) -> Tensor:
    return torch.zeros(len(alibi.slopes), count, device=device)


CODE: dict[str, tuple[Patch, list[str]]] = {
    "keys of the wrong side": (replaced(attention, "alibi_scores", falling_scores), ["bloom"]),
    "no alibi": (replaced(attention, "alibi_scores", no_scores), ["bloom"]),
    "wrong features rotated": (replaced(attention, "rotate", rotate_the_end), PARTIAL),
    "one head rotated backwards": (
        replaced(attention, "rotate", rotate_backwards),
        [name for name in ROPED if name in STACKED],
    ),
    "linear part of xIELU": (replaced(mlp, "xielu", xielu_without_linear_part), ["apertus"]),
    "the scale's base a position late": (replaced(positions, "query_scale", late_query_scale), ["ministral3"]),
    "positions counted from 0": (replaced(positions, "unrotated_scale", late_unrotated_scale), ["llama4_text"]),
    "llama3's ramp inverted": (replaced(positions, "_llama3", inverted_llama3), ["llama-llama3"]),
    "llama3 slowed throughout": (replaced(positions, "_llama3", lambda f, config: f / config.factor), ["llama-llama3"]),
    "yarn's ramp inverted": (replaced(positions, "_yarn", inverted_yarn), YARNS),
    "yarn slowed throughout": (
        replaced(positions, "_yarn", lambda f, config, rotated: f / config.factor),
        ["llama-yarn"],
    ),
    "q and k normalized after rope": (replaced(Attention, "project", norm_after_rope), QK_NORMED),
    "softcap after the mask": (replaced(attention, "attention_weights", softcap_after_mask), ["gemma2"]),
    "table not scaled": (replaced(LayerInputs, "forward", inputs_without(table=8**-0.5)), ["gemma4_text"]),
    "projection not scaled": (replaced(LayerInputs, "forward", inputs_without(projection=48**0.5)), ["gemma4_text"]),
    "inputs not scaled": (replaced(LayerInputs, "forward", inputs_without(mixed=2**0.5)), ["gemma4_text"]),
    "input's gate not activated": (replaced(LayerInput, "forward", input_gate_not_activated), ["gemma4_text"]),
    "input not normalized": (replaced(LayerInput, "forward", input_not_normalized), ["gemma4_text"]),
    "shared values": (replaced(KVCache, "appended", values_not_of_the_shared_layer), ["gemma4_text"]),
    "values after the norm": (replaced(Attention, "project", values_after_norm), GEMMA4_MOE),
    "routed by the experts' input": (replaced(MLPAndExperts, "forward", routed_by_the_experts_input), GEMMA4_MOE),
    "MLP not normalized": (replaced(MLPAndExperts, "forward", not_normalized_after("mlp")), GEMMA4_MOE),
    "experts not normalized": (replaced(MLPAndExperts, "forward", not_normalized_after("moe")), GEMMA4_MOE),
    "only the gate bounded": (replaced(MLP, "forward", only_the_gate_bounded), ["gpt_oss"]),
    "gate bounded below, too": (replaced(MLP, "forward", gate_bounded_below), ["gpt_oss"]),
    "expert weights uniform": (replaced(MoE, "route", uniform_weights), MOE),
    "weights among the chosen experts": (
        replaced(MoE, "route", weights_among_the_chosen),
        ["olmoe", "qwen2_moe", "qwen3_next"],
    ),
    "choice bias in the weights": (replaced(MoE, "route", biased_weights), ["lfm2_moe"]),
    "shared expert gated like an MLP": (replaced(MoE, "for_all", gated_by_silu), GATED_SHARED),
    "no post norms": (replaced(transformer.Block, "contribution", contribution_without_norm), POST_NORMED),
}


@pytest.mark.parametrize(("name", "patch"), rows(CODE))
def test_wrong_code_shows(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, name: str, patch: Patch) -> None:
    case = tiny(name)
    patch(monkeypatch)
    assert parity_error(case.load(), case) > WRONG


# Positions and masks of a chunk that follows cached positions.


@pytest.mark.parametrize("offset", [-1, 1])
@pytest.mark.parametrize("name", ROPED)
def test_a_rotation_off_by_one_shows(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, name: str, offset: int
) -> None:
    """Shifting all positions equally changes nothing, because only distances matter; so shift a later chunk."""
    case = tiny(name)
    right = positions.rotation

    def shifted(frequencies: Tensor, start: int, *rest: Any) -> tuple[Tensor, Tensor]:
        return right(frequencies, start + offset if start else 0, *rest)

    monkeypatch.setattr(positions, "rotation", shifted)
    assert parity_error(case.load(), case) <= CLOSE
    assert parity_error(case.load(), case, [40]) > WRONG


@pytest.mark.parametrize("name", ATTENDING)
@pytest.mark.parametrize("offset", [-1, 1])
def test_a_mask_off_by_one_shows(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, name: str, offset: int) -> None:
    """Each query sees the key after its own too, or does not see its own."""
    case = tiny(name)
    right = positions.causal_mask

    def shifted(past: int, count: int, device: torch.device, window: int | None = None) -> Tensor:
        mask = torch.ones(count, past + count, dtype=torch.bool, device=device).tril(past + offset)
        return mask if window is None else mask.triu(past - window + 1)

    assert not torch.equal(right(3, 5, IDS.device, 4), shifted(3, 5, IDS.device, 4))
    monkeypatch.setattr(positions, "causal_mask", shifted)
    assert parity_error(case.load(), case, [40]) > WRONG


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("offset", [-1, 1])
@pytest.mark.parametrize("cuts", CUTS[:2], ids=CUTS_IDS[:2])
def test_a_window_mask_off_by_one_shows(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, name: str, offset: int, cuts: list[int] | None
) -> None:
    """Only the mask is wrong: a later chunk still gets the keys of the right window."""
    case = tiny(name)
    right = positions.causal_mask

    def shifted(past: int, count: int, device: torch.device, window: int | None = None) -> Tensor:
        return right(past, count, device, None if window is None else window + offset)

    monkeypatch.setattr(positions, "causal_mask", shifted)
    assert parity_error(case.load(), case, cuts) > WRONG


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma2"])
def test_values_out_of_order_show(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    case = tiny(name)
    append = KVCache.append

    def reversed_values(cache: KVCache, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return append(cache, layer, k, v.flip(2))

    monkeypatch.setattr(KVCache, "append", reversed_values)
    assert parity_error(case.load(), case) > WRONG


def test_the_text_is_longer_than_windows_and_original_contexts() -> None:
    assert IDS.shape[1] > 2 * max(WINDOW, ROPE_ORIGINAL)
