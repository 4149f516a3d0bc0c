"""A model's shape in words and numbers: its sizes, and what sets it apart from a plain Llama."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmcli.model.config import ModelConfig, RopeConfig


@dataclass(frozen=True)
class Rope:
    """Rotary positions; ``factor`` stretches the ``original_context`` of pre-training. ``features`` of a head turn."""

    type: str
    theta: float
    factor: float
    original_context: int
    features: int


@dataclass(frozen=True)
class Shape:
    """Sizes, mostly under config.json's notions. ``rows`` are the embedding's, ``tokens`` the tokenizer's.

    ``windowed`` layers see the last ``window`` positions. ``particulars`` tell in words how it differs from a Llama.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    experts: int | None
    experts_per_token: int | None
    rows: int
    tokens: int
    tied: bool
    context: int
    rope: Rope | None
    local_rope: Rope | None
    windowed: int
    window: int | None
    particulars: tuple[str, ...]


def shape_of(config: ModelConfig, tokens: int) -> Shape:
    """The shape of a model whose tokenizer has ``tokens`` tokens."""
    moe = config.moe
    windowed = sum(config.layer_type(layer) == "sliding_attention" for layer in range(config.num_hidden_layers))
    return Shape(
        family=config.model_type,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        intermediate=config.intermediate_size if moe is None else moe.intermediate_size,
        experts=None if moe is None else moe.num_experts,
        experts_per_token=None if moe is None else moe.num_experts_per_tok,
        rows=config.vocab_size,
        tokens=tokens,
        tied=config.tie_word_embeddings,
        context=config.max_position_embeddings,
        rope=_rope(config.rope, config),
        local_rope=_rope(config.local_rope, config),
        windowed=windowed,
        window=config.sliding_window if windowed else None,
        particulars=tuple(_particulars(config)),
    )


def _rope(rope: RopeConfig | None, config: ModelConfig) -> Rope | None:
    if rope is None:
        return None
    return Rope(
        type=rope.rope_type,
        theta=rope.theta,
        factor=rope.factor,
        original_context=rope.original_max_position_embeddings,
        features=rope.rotated(config.head_dim),
    )


def _particulars(config: ModelConfig) -> Iterator[str]:
    """What differs from the defaults of ``ModelConfig``, which are a Llama's."""
    if config.norm == "layer":
        yield "LayerNorm" + (" with biases" if config.norm_bias else "")
    if config.norm_offset:
        yield f"norms add {config.norm_offset:g} to their weight"
    if config.post_norm:
        yield "norms behind attention and MLP, " + ("and before" if config.pre_norm else "none before")
    if config.qk_norm is not None:
        each = {"head": "by head", "heads": "each head its own", "full": "all heads together"}[config.qk_norm]
        yield f"queries and keys are normed, {each}"
    biased = {"q, k and v": config.qkv_bias, "attention's output": config.out_bias, "the MLP": config.mlp_bias}
    if any(biased.values()):
        yield "biases in " + ", ".join(name for name, there in biased.items() if there)
    if config.parallel_residual:
        yield "attention and MLP side by side" + (", behind one norm" if config.shared_norm else "")
    if config.activation != "silu" or not config.gated_mlp:
        yield f"MLP with {config.activation}, {'gated' if config.gated_mlp else 'not gated'}"
    if config.moe is not None and config.moe.dense_layers:
        yield f"layers with an MLP of {config.intermediate_size} in place of experts: {len(config.moe.dense_layers)}"
    if config.position == "learned":
        yield "a learned vector for each position"
    if config.layers_without_rope:
        yield f"layers without positions: {len(config.layers_without_rope)}"
    if config.attention_scale not in (None, config.head_dim**-0.5):
        yield f"attention scores times {config.attention_scale:.4g}"
    caps = {"attention scores": config.attention_softcap, "logits": config.logit_softcap}
    for what, cap in caps.items():
        if cap is not None:
            yield f"{what} bounded to ±{cap:g}"
    for name in ("embedding", "residual", "logit"):
        scale = getattr(config, f"{name}_scale")
        if scale != 1:
            yield f"{name} times {scale:.4g}"
