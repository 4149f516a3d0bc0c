"""DeepSeek and GLM-4.7-Flash: multi-head latent attention, and experts in groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmcli.model.config import MAX_LAYERS, MAX_WIDTH, LatentConfig, ModelConfig, MoeConfig, RopeConfig
from llmcli.model.families.fields import Defaults, common, field, optional, wrong
from llmcli.model.families.rules import Family, Names, Rule, Source, linear


def parse_deepseek_v2(raw: Mapping[str, Any]) -> ModelConfig:
    """DeepSeek-V2 and V2-Lite (DeepSeek-AI 2024): config.json -> ModelConfig, with transformers' defaults."""
    _require(raw, "scoring_func", "softmax")
    _require(raw, "norm_topk_prob", False)
    method = raw.get("topk_method") or "greedy"
    if method not in ("greedy", "group_limited_greedy"):
        raise wrong("topk_method", method, "one of greedy, group_limited_greedy")
    grouped = method == "group_limited_greedy"
    wide, layers = field(raw, "moe_intermediate_size", 1407), field(raw, "num_hidden_layers", 32)
    defaults = Defaults(
        model_type="deepseek_v2",
        vocab_size=102400,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
    )
    moe = MoeConfig(
        num_experts=field(raw, "n_routed_experts", 64),
        num_experts_per_tok=field(raw, "num_experts_per_tok", 6),
        intermediate_size=wide,
        normalize=False,
        dense_layers=_first(field(raw, "first_k_dense_replace", 0), layers),
        shared_intermediate_size=_shared(raw, wide, 2),
        scale=field(raw, "routed_scaling_factor", 1.0),
        groups=field(raw, "n_group", 1) if grouped else 1,
        groups_per_tok=field(raw, "topk_group", 1) if grouped else 1,
    )
    return _config(raw, defaults, moe, LatentConfig(512, 1536, 128, 128), mlp_bias=field(raw, "mlp_bias", False))


def parse_deepseek_v3(raw: Mapping[str, Any]) -> ModelConfig:
    """DeepSeek-V3, V3.1 and R1 (DeepSeek-AI 2024): config.json -> ModelConfig, with transformers' defaults."""
    defaults = Defaults(
        model_type="deepseek_v3",
        vocab_size=129280,
        hidden_size=7168,
        intermediate_size=18432,
        num_hidden_layers=61,
        num_attention_heads=128,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=1,
    )
    layers = field(raw, "num_hidden_layers", defaults.num_hidden_layers)
    moe = _sigmoid_experts(raw, MoeConfig(256, 8, 2048, True, scale=2.5, groups=8, groups_per_tok=4))
    moe = replace(moe, dense_layers=_first(field(raw, "first_k_dense_replace", 3), layers))
    return _config(raw, defaults, moe, LatentConfig(512, 1536, 128, 128))


def parse_glm4_moe_lite(raw: Mapping[str, Any]) -> ModelConfig:
    """GLM-4.7-Flash (Z.ai 2026): config.json -> ModelConfig, with transformers' defaults."""
    defaults = Defaults(
        model_type="glm4_moe_lite",
        vocab_size=154880,
        hidden_size=2048,
        intermediate_size=10240,
        num_hidden_layers=47,
        num_attention_heads=20,
        max_position_embeddings=202752,
        norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=1,
    )
    layers = field(raw, "num_hidden_layers", defaults.num_hidden_layers)
    kinds = raw.get("mlp_layer_types")
    if kinds is None:
        dense = _first(1, layers)
    elif not isinstance(kinds, list) or len(kinds) != layers or any(kind not in ("dense", "sparse") for kind in kinds):
        raise wrong("mlp_layer_types", kinds, f"a list of {layers} times dense or sparse")
    else:
        dense = frozenset(layer for layer, kind in enumerate(kinds) if kind == "dense")
    moe = replace(_sigmoid_experts(raw, MoeConfig(64, 4, 1536, True, scale=1.8)), dense_layers=dense)
    return _config(raw, defaults, moe, LatentConfig(512, 768, 192, 256))


def _sigmoid_experts(raw: Mapping[str, Any], usual: MoeConfig) -> MoeConfig:
    """The experts of DeepSeek-V3 and its kin, with the sizes of ``usual`` where config.json has none."""
    _require(raw, "scoring_func", "sigmoid")
    _require(raw, "topk_method", "noaux_tc")
    wide = field(raw, "moe_intermediate_size", usual.intermediate_size)
    return MoeConfig(
        num_experts=field(raw, "n_routed_experts", usual.num_experts),
        num_experts_per_tok=field(raw, "num_experts_per_tok", usual.num_experts_per_tok),
        intermediate_size=wide,
        normalize=field(raw, "norm_topk_prob", True),
        shared_intermediate_size=_shared(raw, wide, 1),
        scores="sigmoid",
        choice_bias=True,
        normalize_eps=1e-20,
        scale=field(raw, "routed_scaling_factor", usual.scale),
        groups=field(raw, "n_group", usual.groups),
        groups_per_tok=field(raw, "topk_group", usual.groups_per_tok),
        group_best=2,
    )


def _config(
    raw: Mapping[str, Any], defaults: Defaults, moe: MoeConfig, usual: LatentConfig, *, mlp_bias: bool = False
) -> ModelConfig:
    """A config with latent attention, of the sizes of ``usual`` where config.json has none."""
    _require(raw, "rope_interleave", True)
    _require(raw, "moe_layer_freq", 1)
    rotated, bias = field(raw, "qk_rope_head_dim", 64), field(raw, "attention_bias", False)
    if not 1 <= rotated <= MAX_WIDTH:
        raise wrong("qk_rope_head_dim", rotated, f"a whole number from 1 to {MAX_WIDTH}")
    latent = LatentConfig(
        rank=field(raw, "kv_lora_rank", usual.rank),
        query_rank=optional(raw, "q_lora_rank", usual.query_rank, int),
        plain_dim=field(raw, "qk_nope_head_dim", usual.plain_dim),
        value_dim=field(raw, "v_head_dim", usual.value_dim),
        bias=bias,
    )
    shared = common({**raw, "head_dim": rotated, "num_key_value_heads": None}, defaults)
    longer = _longer(raw, shared["rope"])
    scale = longer * longer * (latent.plain_dim + rotated) ** -0.5
    return ModelConfig(**shared, latent=latent, attention_scale=scale, out_bias=bias, mlp_bias=mlp_bias, moe=moe)


def _longer(raw: Mapping[str, Any], rope: RopeConfig) -> float:
    """What scaled rope multiplies whole queries and keys by, for a longer context (Peng et al. 2023, section 3.4)."""
    scaling = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if rope.rope_type == "default" or rope.factor <= 1:
        return 1.0
    return 0.1 * field(scaling, "mscale_all_dim", 0.0) * math.log(rope.factor) + 1


def _shared(raw: Mapping[str, Any], wide: int, usual: int) -> int:
    """The width of the experts that serve every token, which are one wide MLP."""
    return wide * field(raw, "n_shared_experts", usual)


def _first(dense: int, layers: int) -> frozenset[int]:
    """The first ``dense`` of a model's layers."""
    return frozenset(range(max(0, min(dense, layers, MAX_LAYERS))))


def _require(raw: Mapping[str, Any], key: str, value: str | int | bool) -> None:
    """Raise LlmcliError if config.json asks for anything but ``value``, which is the only one supported."""
    found = raw.get(key)
    if found is not None and found != value:
        raise wrong(key, found, str(value).lower() if isinstance(value, bool) else repr(value))


@dataclass(frozen=True)
class LatentNames:
    """The names of the tensors of latent attention; ``queries`` if queries come straight from the residual stream.

    ``kv_by_head`` are names of what makes a head's key, transposed, and its value, if each head has its own matrices;
    they contain the head's number.
    """

    queries: str = "self_attn.q_proj"
    query_latent: str = "self_attn.q_a_proj"
    query_norm: str = "self_attn.q_a_layernorm"
    queries_of_latent: str = "self_attn.q_b_proj"
    latent: str = "self_attn.kv_a_proj_with_mqa"
    latent_norm: str = "self_attn.kv_a_layernorm"
    kv: str = "self_attn.kv_b_proj"
    out: str = "self_attn.o_proj"
    kv_by_head: tuple[str, str] | None = None

    def rules(self, config: ModelConfig, ours: str, theirs: str) -> list[Rule]:
        """The rules of latent attention; the two features of a rotary pair are adjacent in the files."""
        sizes, heads = config.latent, config.num_attention_heads
        assert sizes is not None
        rotated, plain = config.head_dim, sizes.plain_dim
        pairs, many = (1, rotated // 2, 2), (heads, rotated // 2, 2)
        q = theirs + (self.queries if sizes.query_rank is None else self.queries_of_latent)
        table = linear(ours + "q", [Source(q, heads * (plain + rotated), grouped=many, ahead=plain)], bias=False)
        if sizes.query_rank is not None:
            query_latent = Source(theirs + self.query_latent, sizes.query_rank)
            table += linear(ours + "query_latent", [query_latent], bias=sizes.bias)
            table += linear(ours + "query_norm", [Source(theirs + self.query_norm, sizes.query_rank)], bias=False)
        latent = Source(theirs + self.latent, sizes.rank + rotated, grouped=pairs, ahead=sizes.rank)
        table += linear(ours + "latent", [latent], bias=sizes.bias)
        table += linear(ours + "latent_norm", [Source(theirs + self.latent_norm, sizes.rank)], bias=False)
        table += linear(ours + "kv", self.kv_sources(config, sizes, theirs), bias=False)
        return table + linear(ours + "out", [Source(theirs + self.out, config.hidden_size)], bias=config.out_bias)

    def kv_sources(self, config: ModelConfig, sizes: LatentConfig, theirs: str) -> list[Source]:
        """What makes the key and the value of head 0 from a latent vector, then those of head 1, …"""
        if self.kv_by_head is None:
            return [Source(theirs + self.kv, config.num_attention_heads * (sizes.plain_dim + sizes.value_dim))]
        key, value = (theirs + name for name in self.kv_by_head)
        return [
            source
            for head in range(config.num_attention_heads)
            for source in (
                Source(key.format(head), sizes.plain_dim, transposed=True),
                Source(value.format(head), sizes.value_dim),
            )
        ]


NAMES = Names(
    latent=LatentNames().rules,
    choice_bias="mlp.gate.e_score_correction_bias",
    shared_up=("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
    shared_down="mlp.shared_experts.down_proj",
)
DEEPSEEK_V2 = Family("deepseek_v2", parse_deepseek_v2, NAMES.rules)
# The layer after the last predicts further tokens, for speculation.
DEEPSEEK_V3 = Family("deepseek_v3", parse_deepseek_v3, NAMES.rules, dropped=(r"model\.layers\.61\..*",))
GLM4_MOE_LITE = Family(
    "glm4_moe_lite", parse_glm4_moe_lite, NAMES.rules, tokenizer_class="", dropped=(r"model\.layers\.47\..*",)
)
