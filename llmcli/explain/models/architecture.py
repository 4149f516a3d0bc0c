"""A model's architecture: its sizes, and what distinguishes it from a plain Llama."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmcli.model.config import ModelConfig, MoeConfig, RopeConfig


@dataclass(frozen=True)
class Rotary:
    """Rotary positions of ``features`` of a head's ``head_dim``.

    ``factor`` extends the ``original_context`` of pre-training.
    """

    type: str
    theta: float
    factor: float
    original_context: int
    features: int
    head_dim: int


@dataclass(frozen=True)
class Architecture:
    """Sizes; ``rows`` is the number of embeddings, ``tokens`` the number of tokens that the tokenizer has.

    ``attending`` layers have attention; ``windowed`` ones see the last ``window`` positions only. ``recurrent`` layers
    have a ``mixer``, described in words. ``dense`` layers have an MLP, and ``routed`` ones experts. ``particulars`` are
    phrases for what differs from a Llama.
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
    rope: Rotary | None
    local_rope: Rotary | None
    attending: int
    windowed: int
    window: int | None
    recurrent: int
    mixer: str | None
    dense: int
    routed: int
    particulars: tuple[str, ...]


def architecture_of(config: ModelConfig, tokens: int) -> Architecture:
    """Return the architecture of a model whose tokenizer has ``tokens`` tokens."""
    moe, layers = config.moe, range(config.num_hidden_layers)
    routed = sum(map(config.is_moe, layers))
    windowed = sum(config.layer_type(layer) == "sliding_attention" for layer in layers)
    return Architecture(
        family=config.model_type,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.query_dim,
        intermediate=config.intermediate_size if moe is None else moe.intermediate_size,
        experts=None if moe is None else moe.num_experts,
        experts_per_token=None if moe is None else moe.num_experts_per_tok,
        rows=config.vocab_size,
        tokens=tokens,
        tied=config.tie_word_embeddings,
        context=config.max_position_embeddings,
        rope=_rope(config.rope, config),
        local_rope=_rope(config.local_rope, config),
        attending=len(config.attending),
        windowed=windowed,
        window=config.sliding_window if windowed else None,
        recurrent=sum(map(config.has_mixer, layers)),
        mixer=None if config.mixer is None else str(config.mixer),
        dense=sum(map(config.has_mlp, layers)) - routed,
        routed=routed,
        particulars=tuple(_particulars(config)),
    )


def _rope(rope: RopeConfig | None, config: ModelConfig) -> Rotary | None:
    if rope is None:
        return None
    return Rotary(
        type=rope.rope_type,
        theta=rope.theta,
        factor=rope.factor,
        original_context=rope.original_max_position_embeddings,
        features=rope.moving(config.head_dim),
        head_dim=rope.head_dim or config.head_dim,
    )


def _experts(moe: MoeConfig) -> Iterator[str]:
    """Phrases for what differs from the defaults of ``MoeConfig``."""
    if moe.router_bias:
        yield "biases in the router"
    if moe.shared_intermediate_size is not None:
        gated = ", gated" if moe.shared_gate else ""
        yield f"an expert of {moe.shared_intermediate_size} that serves every token{gated}"
    if moe.scores == "sigmoid":
        yield "experts scored by sigmoid"
    if moe.choice_bias:
        yield "biases that choose experts, but do not weight them"
    if moe.groups > 1:
        yield f"experts from the best {moe.groups_per_tok} of {moe.groups} groups"
    if moe.weighs_inputs:
        yield "weights multiply what experts read"
    if moe.router_norm:
        yield "a norm before the router"
    if moe.expert_scale:
        yield "a factor for each expert"
    if moe.scale != 1:
        yield f"weights of experts times {moe.scale:.4g}"


def _layer_sizes(config: ModelConfig) -> Iterator[str]:
    """Phrases for what layers have of their own, and for what they share."""
    full = next((n for n in range(config.num_hidden_layers) if config.layer_type(n) == "full_attention"), None)
    if full is not None and config.global_head_dim is not None:
        heads = f"heads of size {config.head_size(full)}, {config.kv_heads(full)} of them for keys"
        yield f"in layers with full attention {heads}" + (" which are the values, too" * config.attention_k_eq_v)
    if config.value_norm:
        yield "normalized values"
    if config.num_kv_shared_layers:
        wide = f", which have an MLP of {config.mlp_size(config.num_hidden_layers - 1)}"
        which = f"layers that read the keys and values of earlier ones: {config.num_kv_shared_layers}"
        yield which + wide * config.use_double_wide_mlp
    if config.hidden_size_per_layer_input is not None:
        yield f"an embedding of {config.hidden_size_per_layer_input} for each layer"
    if config.layer_scalar:
        yield "a factor for each layer"


def _particulars(config: ModelConfig) -> Iterator[str]:
    """Phrases for what differs from the defaults of ``ModelConfig``, which are a Llama's."""
    if config.norm == "layer":
        yield "LayerNorm" + (" with biases" if config.norm_bias else "")
    if config.norm_offset:
        yield f"norms scale by {config.norm_offset:g} + weight"
    if not config.norm_weight:
        yield "norms without weights"
    if config.embedding_norm:
        yield "a norm after the embedding"
    if config.post_norm:
        yield "norms after attention and MLP, " + ("and before" if config.pre_norm else "not before")
    if config.qk_norm is not None:
        each = {
            "head": "per head",
            "heads": "per head with its own weights",
            "full": "over all heads",
            "unweighted": "per head without weights",
        }[config.qk_norm]
        after = ", after their rotation" if config.qk_norm_after_rope else ""
        yield f"norms on queries and keys, {each}{after}"
    biased = {
        "q, k and v": config.qkv_bias,
        "attention output": config.out_bias,
        "MLP": config.mlp_bias,
        "head": config.head_bias,
    }
    if any(biased.values()):
        yield "biases in " + ", ".join(name for name, has_bias in biased.items() if has_bias)
    if config.parallel_residual:
        yield "attention and MLP in parallel" + (", after one shared norm" if config.shared_norm else "")
    if config.activation != "silu" or not config.gated_mlp:
        yield f"{'gated' if config.gated_mlp else 'ungated'} MLP with {config.activation}"
    if config.gate_limit is not None:
        yield f"gate at most {config.gate_limit:g}, and what it multiplies within ±{config.gate_limit:g}"
    if config.up_offset:
        yield f"what the gate multiplies plus {config.up_offset:g}"
    if config.moe is not None:
        yield from _experts(config.moe)
        if config.moe.beside_mlp:
            yield f"an MLP of {config.intermediate_size} beside the experts"
    if config.attention_sinks:
        yield "an attention sink per head"
    if config.moe is not None and config.moe.dense_layers:
        yield f"layers with an MLP of {config.intermediate_size} instead of experts: {len(config.moe.dense_layers)}"
    if config.position == "learned":
        yield "learned position embeddings"
    if config.position == "alibi":
        yield "ALiBi: scores that fall with distance"
    if config.position == "none":
        yield "no position encoding"
    if config.layers_without_rope:
        yield f"layers without positions: {len(config.layers_without_rope)}"
    yield from _layer_sizes(config)
    if config.attention_gate:
        yield "gated attention outputs"
    if config.qkv_limit is not None:
        yield f"queries, keys and values within ±{config.qkv_limit:g}"
    if config.latent is not None:
        latent = f"keys and values from a latent vector of {config.latent.rank}"
        yield f"{latent}, cached with {config.head_dim} rotated features"
    if config.attention_scale not in (None, config.query_dim**-0.5):
        yield f"attention scores times {config.attention_scale:.4g}"
    if config.attention_chunks:
        yield f"windows begin at multiples of {config.sliding_window}"
    if config.query_scale_beta:
        where = " in layers without positions" if config.floor_scale is not None else ""
        yield f"queries grow by {config.query_scale_beta:g} times a logarithm of the position{where}"
    caps = {"attention scores": config.attention_softcap, "logits": config.logit_softcap}
    for what, cap in caps.items():
        if cap is not None:
            yield f"{what} capped softly at ±{cap:g}"
    hybrid = config.layer_types.count("hybrid")
    if hybrid:
        yield f"layers with attention and a mixer: {hybrid}"
    scales = {
        "embedding": config.embedding_scale,
        "residual": config.residual_scale,
        "logit": config.logit_scale,
        "attention output": config.attention_out_scale,
        "gate": config.gate_scale,
        "MLP output": config.mlp_out_scale,
    }
    for name, scale in scales.items():
        if scale != 1:
            yield f"{name} times {scale:.4g}"
