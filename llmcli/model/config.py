"""A model's sizes and architectural choices, frozen and validated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from llmcli.errors import LlmcliError
from llmcli.model.mixers.config import MixerConfig

if TYPE_CHECKING:
    from llmcli.model.activations import Activation

RopeType = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"]
ROPE_TYPES: tuple[RopeType, ...] = get_args(RopeType)

LayerType = Literal["full_attention", "sliding_attention", "recurrent", "hybrid", "mlp"]

MAX_LAYERS = 512
MAX_WIDTH = 2**20
MAX_POSITIONS = 2**30
# Far above any real model, so that a damaged number costs neither memory nor time.
_MAX = {
    "vocab_size": 2**24,
    "hidden_size": MAX_WIDTH,
    "intermediate_size": 2**24,
    "num_hidden_layers": MAX_LAYERS,
    "num_attention_heads": 512,
    "num_key_value_heads": 512,
    "head_dim": 2**14,
    "max_position_embeddings": MAX_POSITIONS,
}
_MAX_EXPERTS = 2**15  # over all layers


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021, RoFormer) and how it is scaled to longer contexts.

    Fields are those of config.json's ``rope_parameters`` (or ``rope_scaling``); ``theta`` is its ``rope_theta``.
    ``partial_rotary_factor`` is the share of each head's features that is rotated; ``attention_factor`` multiplies
    the rotated features. ``backwards`` rotates in the opposite direction. ``original_max_position_embeddings`` is the
    context length of pre-training, in tokens. ``head_dim`` is the size of the heads that it rotates; None: the model's.

    "proportional": all features are paired as if all were rotated, but the slowest pairs stand still.
    """

    theta: float = 10000.0
    rope_type: RopeType = "default"
    partial_rotary_factor: float = 1.0
    factor: float = 1.0
    original_max_position_embeddings: int = 1
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0  # yarn, longrope
    backwards: bool = False
    short_factor: tuple[float, ...] = ()  # longrope
    long_factor: tuple[float, ...] = ()
    head_dim: int | None = None

    def __post_init__(self) -> None:
        if not self.theta > 1 or not self.factor > 0 or not self.attention_factor > 0:
            raise _bad(
                f"rope_theta ({self.theta}) must be above 1, "
                f"factor ({self.factor}) and attention_factor ({self.attention_factor}) above 0"
            )
        if not 0 < self.partial_rotary_factor <= 1:
            raise _bad(f"partial_rotary_factor must be above 0 and at most 1, not {self.partial_rotary_factor}")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise _bad(
                f"low_freq_factor ({self.low_freq_factor}) must be above 0 and below "
                f"high_freq_factor ({self.high_freq_factor})"
            )
        if not 0 < self.beta_slow <= self.beta_fast:
            raise _bad(f"beta_slow ({self.beta_slow}) must be above 0 and at most beta_fast ({self.beta_fast})")
        if not 1 <= self.original_max_position_embeddings <= MAX_POSITIONS:
            raise _bad(
                f"original_max_position_embeddings must be from 1 to {MAX_POSITIONS}, "
                f"not {self.original_max_position_embeddings}"
            )
        if not all(0 < factor < math.inf for factor in (*self.short_factor, *self.long_factor)):
            raise _bad("short_factor and long_factor must contain only numbers above 0")

    def rotated(self, head_dim: int) -> int:
        """The number of rotated features per head, of ``head_dim`` if this config has none; others follow them."""
        size = self.head_dim or head_dim
        return size if self.rope_type == "proportional" else int(size * self.partial_rotary_factor)

    def moving(self, head_dim: int) -> int:
        """The number of features per head that depend on the position: ``rotated`` without pairs that stand still."""
        size = self.head_dim or head_dim
        if self.rope_type == "proportional":
            return 2 * int(self.partial_rotary_factor * size // 2)
        return self.rotated(size)


@dataclass(frozen=True)
class MoeConfig:
    """Mixture of experts (Shazeer et al. 2017) instead of the MLP: a router sends each token to a few experts.

    ``normalize`` makes the chosen experts' weights sum to 1 (``norm_topk_prob``). The layers in ``dense_layers`` keep
    an ordinary MLP. ``router_bias``: the router has a bias. ``shared_intermediate_size``: one more expert, of this
    width, serves every token (Dai et al. 2024, DeepSeekMoE); ``shared_gate``: its output is multiplied by the sigmoid
    of a gate.

    ``scores``: the function that turns the router's logits into scores. ``choice_bias``: each expert has a bias that is
    added to its score for the choice of experts, but not for their weights (Wang et al. 2024, Loss-Free Balancing).
    ``normalize_eps`` is added to the sum that ``normalize`` divides by; ``scale`` multiplies the weights, and
    ``expert_scale`` each expert's weight by a learned number. ``weighs_inputs``: the weights
    multiply what experts read, not what they compute.

    ``beside_mlp``: a layer with experts also has an ordinary MLP, whose output is added to theirs; see
    ``MLPAndExperts``. ``router_norm``: the router reads its input normalized, times hidden_size^-1/2.

    The experts form ``groups`` of equal size, and a token's experts come from its ``groups_per_tok`` best groups; a
    group is as good as its ``group_best`` best experts together (DeepSeek-AI 2024, DeepSeek-V2 and V3).
    """

    num_experts: int
    num_experts_per_tok: int
    intermediate_size: int
    normalize: bool
    dense_layers: frozenset[int] = frozenset()
    router_bias: bool = False
    shared_intermediate_size: int | None = None
    shared_gate: bool = False
    scores: Literal["softmax", "sigmoid"] = "softmax"
    choice_bias: bool = False
    normalize_eps: float = 0.0
    scale: float = 1.0
    groups: int = 1
    groups_per_tok: int = 1
    group_best: int = 1
    weighs_inputs: bool = False
    expert_scale: bool = False
    beside_mlp: bool = False
    router_norm: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise _bad(
                f"num_experts_per_tok ({self.num_experts_per_tok}) must be from 1 to num_experts ({self.num_experts})"
            )
        widths = {"experts'": self.intermediate_size, "shared expert's": self.shared_intermediate_size}
        for whose, width in widths.items():
            if width is not None and not 1 <= width <= _MAX["intermediate_size"]:
                raise _bad(f"the {whose} intermediate_size must be from 1 to {_MAX['intermediate_size']}, not {width}")
        if not 0 < self.scale < math.inf:
            raise _bad(f"routed_scaling_factor must be above 0, not {self.scale}")
        if self.shared_gate and self.shared_intermediate_size is None:
            raise _bad("a gate of the shared expert requires a shared expert")
        self._check_groups()

    def _check_groups(self) -> None:
        if not 1 <= self.groups_per_tok <= self.groups or self.num_experts % self.groups:
            raise _bad(
                f"{self.num_experts} experts cannot form {self.groups} equal groups, of which a token's come from "
                f"{self.groups_per_tok}"
            )
        size = self.num_experts // self.groups
        if self.groups > 1 and self.group_best > size:
            raise _bad(f"a group of {size} experts cannot be compared by its {self.group_best} best ones")
        if self.num_experts_per_tok > self.groups_per_tok * size:
            raise _bad(
                f"num_experts_per_tok ({self.num_experts_per_tok}) must be at most the {self.groups_per_tok * size} "
                "experts of a token's groups"
            )


@dataclass(frozen=True)
class LatentConfig:
    """Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2, section 2.1).

    Keys and values of all heads are computed from a latent vector of ``rank`` features per position; the cache holds
    it, and a key of ``head_dim`` rotated features that all heads share. Each head's queries and keys have ``plain_dim``
    features before the rotated ones, its values have ``value_dim``. Queries come from a latent vector of ``query_rank``
    features, or straight from the residual stream (None). ``bias``: the matrices that compute latents have a bias.
    ``norm_eps`` is that of the latents' norms.
    """

    rank: int
    query_rank: int | None
    plain_dim: int
    value_dim: int
    bias: bool = False
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        sizes = {
            "kv_lora_rank": self.rank,
            "q_lora_rank": self.query_rank,
            "qk_nope_head_dim": self.plain_dim,
            "v_head_dim": self.value_dim,
        }
        for name, size in sizes.items():
            if size is not None and not 1 <= size <= _MAX["head_dim"]:
                raise _bad(f"{name} must be from 1 to {_MAX['head_dim']}, not {size}")


@dataclass(frozen=True)
class AlibiConfig:
    """Attention with linear biases (Press et al. 2022): a head adds slope * position * ``scale`` to a key's score.

    ``slopes`` has one for each head. ``bfloat16``: slopes and their products with positions are rounded to bfloat16, as
    in the model's training.
    """

    slopes: tuple[float, ...]
    scale: float = 1.0
    bfloat16: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """Every size and choice of a decoder-only transformer, under Hugging Face's names where they exist.

    The defaults are Llama's. ``max_position_embeddings`` is the context length in tokens.

    - ``norm`` is RMSNorm or LayerNorm (``norm_bias``: with a bias; ``norm_weight``: with a weight); ``norm_offset`` is
      added to its weight. ``embedding_norm`` comes after the embedding.
      ``pre_norm`` comes before attention and MLP, ``post_norm`` after each. ``qk_norm`` normalizes queries and keys:
      each head by one shared weight ("head") or by its own ("heads"), or all heads of a token together ("full"), or
      each head without a weight, only in layers with rotation ("unweighted"); ``qk_norm_after_rope`` says whether after
      their rotation.
    - ``parallel_residual``: the MLP reads the same residual as attention, with its own norm unless ``shared_norm``.
    - ``position``: order comes from rotated queries and keys ("rope"), from a learned vector per position, from scores
      that grow with a key's position ("alibi"), or only from recurrent layers ("none").
      ``local_rope`` replaces ``rope`` in windowed layers; ``layers_without_rope`` have neither.
    - ``layer_types``: windowed layers see the last ``sliding_window`` positions, the query's own included; with
      ``attention_chunks``, only those since the last position that is a multiple of ``sliding_window``. Layers with
      full attention have heads of ``global_head_dim`` and ``num_global_key_value_heads`` key/value heads; None: as many
      as the others. With ``attention_k_eq_v``, their values are the keys before norm and rotation.
    - ``value_norm`` normalizes values, without a weight.
    - ``num_kv_shared_layers``: so many of the last layers compute no keys and values, but read those of the last layer
      of their type before them. With ``use_double_wide_mlp``, their MLP is twice as wide.
    - ``hidden_size_per_layer_input``: each layer adds something of its own for each token, which it computes from this
      many numbers, stored for ``vocab_size_per_layer_input`` tokens; see ``per_layer.py``.
    - ``layer_scalar``: each layer multiplies the residual stream that it leaves by a learned number.
    - ``latent``: keys and values come from a latent vector; ``head_dim`` are then only the rotated features.
    - ``mixer`` is what layers of the type "recurrent" have in attention's place, and those of the type "hybrid" beside
      it: both read the same. Layers of the type "mlp" have neither; ``layers_without_mlp`` have no MLP.
    - ``attention_gate``: each head's output is multiplied by the sigmoid of a gate, which is computed with its query.
    - ``qkv_limit`` c bounds queries, keys and values to -c .. c, before rotation.
    - ``attention_scale`` multiplies the scores q·k; None is head_dim^-1/2. A softcap c bounds x to c tanh(x/c):
      ``attention_softcap`` the scores, ``logit_softcap`` the logits. ``query_scale_beta`` b multiplies the query at
      position p by 1 + b log(1 + floor(p / c)), where c is the original context of ``rope``. With ``floor_scale``, c is
      that, p counts from 1, and only layers without rotary positions do it.
    - ``attention_sinks``: each head has a learned score that takes part in the softmax like the score of one more
      position, whose value is 0 (Xiao et al. 2023).
    - ``gate_limit`` c bounds what a gated MLP computes with: the gate from above by c, the other half to -c .. c.
      ``up_offset`` is added to that half.
    - ``embedding_scale``, ``residual_scale`` and ``logit_scale`` multiply the embedding, what each layer adds to the
      residual, and the logits.
    - ``attention_out_scale`` and ``mlp_out_scale`` multiply the output of attention and of the MLP, ``gate_scale`` the
      gate of a gated MLP before its activation.
    - ``eos_by_default``: config.json names no end-of-text token, so ``eos_token_ids`` are only the family's usual ones.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    tie_word_embeddings: bool = False
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    norm_bias: bool = False
    norm_weight: bool = True
    embedding_norm: bool = False
    norm_offset: float = 0.0
    pre_norm: bool = True
    post_norm: bool = False
    qk_norm: Literal["head", "heads", "full", "unweighted"] | None = None
    qk_norm_after_rope: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    parallel_residual: bool = False
    shared_norm: bool = False
    gated_mlp: bool = True
    activation: Activation = "silu"
    gate_limit: float | None = None
    up_offset: float = 0.0
    moe: MoeConfig | None = None
    position: Literal["rope", "learned", "alibi", "none"] = "rope"
    rope: RopeConfig | None = None
    local_rope: RopeConfig | None = None
    layers_without_rope: frozenset[int] = frozenset()
    alibi: AlibiConfig | None = None
    sliding_window: int | None = None
    attention_chunks: bool = False
    layer_types: tuple[LayerType, ...] = ()  # empty: full attention in all layers
    global_head_dim: int | None = None
    num_global_key_value_heads: int | None = None
    attention_k_eq_v: bool = False
    value_norm: bool = False
    num_kv_shared_layers: int = 0
    use_double_wide_mlp: bool = False
    hidden_size_per_layer_input: int | None = None
    vocab_size_per_layer_input: int | None = None
    layer_scalar: bool = False
    latent: LatentConfig | None = None
    mixer: MixerConfig | None = None
    layers_without_mlp: frozenset[int] = frozenset()
    attention_gate: bool = False
    qkv_limit: float | None = None
    attention_scale: float | None = None
    attention_softcap: float | None = None
    attention_sinks: bool = False
    query_scale_beta: float = 0.0
    floor_scale: int | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    attention_out_scale: float = 1.0
    gate_scale: float = 1.0
    mlp_out_scale: float = 1.0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    eos_by_default: bool = False

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_positions()
        self._check_layer_sizes()
        for name in ("attention_softcap", "logit_softcap", "attention_scale", "gate_limit", "qkv_limit"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise _bad(f"{name} must be above 0, not {value}")
        if not 0 <= self.query_scale_beta < math.inf:
            raise _bad(f"the factor of the queries' scale must be at least 0 and finite, not {self.query_scale_beta}")
        if self.floor_scale is not None and not 1 <= self.floor_scale <= MAX_POSITIONS:
            raise _bad(f"floor_scale must be from 1 to {MAX_POSITIONS}, not {self.floor_scale}")
        if not 0 <= self.norm_eps < math.inf:
            raise _bad(f"norm_eps must be at least 0 and finite, not {self.norm_eps}")
        if self.shared_norm and not self.parallel_residual:
            raise _bad("a norm shared by attention and MLP requires a parallel residual")
        if self.head_bias and self.tie_word_embeddings:
            raise _bad("a head with a bias cannot be tied to the embedding")

    def _check_counts(self) -> None:
        for name, most in _MAX.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise _bad(f"{name} must be a whole number from 1 to {most}, not {value!r}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise _bad(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.moe is not None and self.moe.num_experts * self.num_hidden_layers > _MAX_EXPERTS:
            raise _bad(f"{self.moe.num_experts} experts in {self.num_hidden_layers} layers exceed {_MAX_EXPERTS}")

    def _check_positions(self) -> None:
        if (self.rope is not None) != (self.position == "rope"):
            raise _bad(f"position {self.position!r} contradicts rope {self.rope!r}")
        if (self.alibi is not None) != (self.position == "alibi"):
            raise _bad(f"position {self.position!r} contradicts alibi {self.alibi!r}")
        if self.alibi is not None and len(self.alibi.slopes) != self.num_attention_heads:
            raise _bad(f"{self.num_attention_heads} heads need as many slopes, not {len(self.alibi.slopes)}")
        if self.alibi is not None and self.sliding_window is not None:
            raise _bad("layers with ALiBi cannot be windowed")
        for rope in (self.rope, self.local_rope):
            if rope is None:
                continue
            rotated = rope.rotated(self.head_dim)
            if rotated < 2 or rotated % 2:
                raise _bad(
                    f"an even number of features per head must be rotated, not {rotated} (head_dim is {self.head_dim})"
                )
            if rope.rope_type == "dynamic" and rotated == 2:
                raise _bad("dynamic rope scaling needs more than 2 rotated features")
            if rope.rope_type == "longrope" and {len(rope.short_factor), len(rope.long_factor)} != {rotated // 2}:
                raise _bad(f"short_factor and long_factor must each hold {rotated // 2} numbers")
        if self.layer_types and len(self.layer_types) != self.num_hidden_layers:
            raise _bad(f"layer_types has {len(self.layer_types)} entries for {self.num_hidden_layers} layers")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise _bad(f"sliding_window must be at least 1, not {self.sliding_window}")
        if "sliding_attention" in self.layer_types and self.sliding_window is None:
            raise _bad("layer_types has windowed layers, but sliding_window is not set")
        if any(map(self.has_mixer, range(len(self.layer_types)))) and self.mixer is None:
            raise _bad("layer_types has recurrent layers, but there are no sizes for them")
        empty = [layer for layer in self.layers_without_mlp if self.layer_type(layer) == "mlp"]
        if empty:
            raise _bad(f"layer {min(empty)} has neither attention nor an MLP")

    def _check_layer_sizes(self) -> None:
        sizes = {
            "global_head_dim": (self.global_head_dim, _MAX["head_dim"]),
            "num_global_key_value_heads": (self.num_global_key_value_heads, _MAX["num_key_value_heads"]),
            "hidden_size_per_layer_input": (self.hidden_size_per_layer_input, MAX_WIDTH),
            "vocab_size_per_layer_input": (self.vocab_size_per_layer_input, _MAX["vocab_size"]),
        }
        for name, (value, most) in sizes.items():
            if value is not None and not 1 <= value <= most:
                raise _bad(f"{name} must be from 1 to {most}, not {value}")
        if self.num_attention_heads % (self.num_global_key_value_heads or 1):
            raise _bad(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_global_key_value_heads ({self.num_global_key_value_heads})"
            )
        tokens = self.vocab_size_per_layer_input
        if self.hidden_size_per_layer_input is not None and (tokens is None or tokens < self.vocab_size):
            raise _bad(f"vocab_size_per_layer_input ({tokens}) must be at least vocab_size ({self.vocab_size})")
        if not 0 <= self.num_kv_shared_layers < self.num_hidden_layers:
            raise _bad(
                f"num_kv_shared_layers ({self.num_kv_shared_layers}) must be at least 0 and below "
                f"num_hidden_layers ({self.num_hidden_layers})"
            )
        layers = range(self.num_hidden_layers)
        own = [self.layer_type(layer) for layer in layers[: self._first_shared]]
        if not all(self.layer_type(layer) in own for layer in layers[self._first_shared :]):
            raise _bad("a layer that reads another's keys and values has no layer of its type before it")

    @property
    def _first_shared(self) -> int:
        """The first layer that reads another layer's keys and values."""
        return self.num_hidden_layers - self.num_kv_shared_layers

    def kv_layer(self, layer: int) -> int:
        """The layer whose keys and values a layer with attention reads: itself, or an earlier one."""
        if layer < self._first_shared:
            return layer
        return max(other for other in range(self._first_shared) if self.layer_type(other) == self.layer_type(layer))

    def keeps_kv(self, layer: int) -> bool:
        """Whether a layer has keys and values of its own."""
        return self.has_attention(layer) and self.kv_layer(layer) == layer

    def head_size(self, layer: int) -> int:
        """The number of features per head of a layer."""
        return self.head_dim if self._local(layer) else self.global_head_dim or self.head_dim

    def kv_heads(self, layer: int) -> int:
        """The number of key/value heads that a layer reads."""
        return self.num_key_value_heads if self._local(layer) else self._global_kv_heads

    @property
    def _global_kv_heads(self) -> int:
        return self.num_global_key_value_heads or self.num_key_value_heads

    def _local(self, layer: int) -> bool:
        return self.layer_type(layer) == "sliding_attention"

    def projected_heads(self, layer: int) -> tuple[int, int, int]:
        """The numbers of query, key and value heads that a layer computes."""
        kv_heads = self.kv_heads(layer) if self.kv_layer(layer) == layer else 0
        values = 0 if self.attention_k_eq_v and not self._local(layer) else kv_heads
        return self.num_attention_heads, kv_heads, values

    def mlp_size(self, layer: int) -> int:
        """The width of a layer's MLP."""
        double = self.use_double_wide_mlp and layer >= self._first_shared
        return 2 * self.intermediate_size if double else self.intermediate_size

    @property
    def q_size(self) -> int:
        """Width of all query heads together: H * D."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or all value) heads together: K * D."""
        return self.num_key_value_heads * self.head_dim

    @property
    def query_dim(self) -> int:
        """Features of a head's queries and keys."""
        return self.head_dim if self.latent is None else self.latent.plain_dim + self.head_dim

    def cached(self, layer: int) -> tuple[int, int, int]:
        """How many keys and values a layer keeps of a position, and the features of a key and of a value."""
        if self.latent is not None:  # one vector, from which heads compute both
            return 1, self.latent.rank + self.head_dim, 0
        return self.kv_heads(layer), self.head_size(layer), self.head_size(layer)

    def layer_norms(self, layer: int) -> tuple[str, ...]:
        """The names of a layer's norms, at most four; an absent one is the identity."""
        mixes, has_mlp = self.layer_type(layer) != "mlp", self.has_mlp(layer)
        present = {
            "attn_norm": mixes and self.pre_norm,
            "attn_post_norm": mixes and self.post_norm,
            "mlp_norm": has_mlp and self.pre_norm and not self.shared_norm and not self.has_mlp_and_experts(layer),
            "mlp_post_norm": has_mlp and self.post_norm,
        }
        return tuple(name for name, is_present in present.items() if is_present)

    def has_mlp_and_experts(self, layer: int) -> bool:
        """Whether a layer has an MLP and experts, each with norms of its own."""
        return self.moe is not None and self.moe.beside_mlp and self.is_moe(layer)

    def layer_type(self, layer: int) -> LayerType:
        """How a layer mixes positions: by attention to all earlier ones or a window, by a mixer, by both or not."""
        return self.layer_types[layer] if self.layer_types else "full_attention"

    def has_attention(self, layer: int) -> bool:
        """Whether a layer has attention."""
        return self.layer_type(layer) in ("full_attention", "sliding_attention", "hybrid")

    @property
    def attending(self) -> tuple[int, ...]:
        """The layers that have attention."""
        return tuple(filter(self.has_attention, range(self.num_hidden_layers)))

    def has_mixer(self, layer: int) -> bool:
        """Whether a layer has a recurrent mixer."""
        return self.layer_type(layer) in ("recurrent", "hybrid")

    def has_mlp(self, layer: int) -> bool:
        """Whether a layer has an MLP or experts."""
        return layer not in self.layers_without_mlp

    def is_moe(self, layer: int) -> bool:
        """Whether a layer has experts instead of an MLP."""
        return self.moe is not None and self.has_mlp(layer) and layer not in self.moe.dense_layers


def _bad(message: str) -> LlmcliError:
    return LlmcliError(f"config.json: {message}", "the file may be damaged, or the model unsupported")
