"""The families as GGUF files describe them: metadata becomes a config.json and back; tensors have llama.cpp's names.

The family's own parser reads the result, so a model is the same however it is stored. What metadata leaves out is what
the families and llama.cpp both fix, such as the layers of Gemma that have a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.model.config import ModelConfig, RopeConfig
from llmcli.model.families.fields import wrong
from llmcli.model.families.gguf_mixers import delta_net, delta_net_by_head, mamba, short_conv
from llmcli.model.families.rules import Family, Names, Rule
from llmcli.model.mixers.config import DeltaNetConfig, MambaConfig

NAMES = Names(
    embedding="token_embd",
    positions="position_embd",
    norm="output_norm",
    head="output",
    layer="blk.{}.",
    attn_norm="attn_norm",
    attn_post_norm="post_attention_norm",
    mlp_norm="ffn_norm",
    mlp_post_norm="post_ffw_norm",
    qkv=("attn_q", "attn_k", "attn_v"),
    q_norm="attn_q_norm",
    k_norm="attn_k_norm",
    out="attn_output",
    up=("ffn_gate", "ffn_up"),
    down="ffn_down",
    router="ffn_gate_inp",
    expert="experts.{}.",  # the reader divides a tensor of all experts: see ``storage/gguf/weights.py``
    expert_up=("ffn_gate", "ffn_up"),
    expert_down="ffn_down",
)
PAIRED = replace(NAMES, interleaved=True)  # converters reorder the rows of q and k of Llama's kin
UNGATED = replace(NAMES, up=("ffn_up",))
STACKED = replace(UNGATED, qkv=("attn_qkv",))
SHARED_NAMES = replace(
    NAMES,
    shared_up=("ffn_gate_shexp", "ffn_up_shexp"),
    shared_down="ffn_down_shexp",
    shared_gate="ffn_gate_inp_shexp",
)
DELTA_NET_NAMES = replace(SHARED_NAMES, mlp_norm="post_attention_norm")
LFM2_NAMES = replace(NAMES, norm="token_embd_norm", choice_bias="exp_probs_b.bias", mixer=short_conv)
HEADS, KV_HEADS = "attention.head_count", "attention.head_count_kv"
MAX_FACTORS = 2**12  # more pairs than a head has
COMPANIONS = {"adapter": "a LoRA adapter", "mmproj": "an encoder of images or sound", "imatrix": "statistics"}
SAME = {
    "mistral": "llama",
    "gemma3": "gemma3_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}  # families that are stored as another one
DROPPED = (r"rope_freqs\.weight", r"rope_factors_(long|short)\.weight")  # part of the config


@dataclass(frozen=True)
class Value:
    """A number of a model: its key in config.json and, after the architecture's name, in the metadata.

    ``of`` returns it for a config; None: it has none. A file must have the value if it is ``required``.
    """

    name: str
    key: str
    of: Callable[[ModelConfig], int | float | None]
    required: bool = True


def _field(name: str, key: str, *, required: bool = True) -> Value:
    return Value(name, key, attrgetter(name), required)


def _expert_field(name: str, key: str) -> Value:
    return Value(name, key, lambda config: None if config.moe is None else getattr(config.moe, name))


SHARED = (
    _field("hidden_size", "embedding_length"),
    _field("intermediate_size", "feed_forward_length"),
    _field("num_hidden_layers", "block_count"),
    _field("num_attention_heads", HEADS),
    _field("num_key_value_heads", KV_HEADS, required=False),
    _field("head_dim", "attention.key_length", required=False),
    _field("max_position_embeddings", "context_length"),
    Value("rope_theta", "rope.freq_base", lambda config: config.rope.theta if config.rope else None, required=False),
)
RMS = (Value("rms_norm_eps", "attention.layer_norm_rms_epsilon", attrgetter("norm_eps")),)
EXPERTS = (
    *RMS,
    _expert_field("num_experts", "expert_count"),
    _expert_field("num_experts_per_tok", "expert_used_count"),
)
EXPERT_SIZE = replace(_expert_field("intermediate_size", "expert_feed_forward_length"), name="moe_intermediate_size")
WINDOW = _field("sliding_window", "attention.sliding_window", required=False)
GEMMA2 = (
    *RMS,
    WINDOW,
    Value("attn_logit_softcapping", "attn_logit_softcapping", attrgetter("attention_softcap"), required=False),
    Value("final_logit_softcapping", "final_logit_softcapping", attrgetter("logit_softcap"), required=False),
)
GEMMA3 = (
    *RMS,
    WINDOW,
    Value(
        "rope_local_base_freq",
        "rope.freq_base_swa",
        lambda config: config.local_rope.theta if config.local_rope else None,
        required=False,
    ),
)
# 0: some versions of llama.cpp assume a window where the file has no key.
PHI3 = (*RMS, replace(WINDOW, of=lambda config: config.sliding_window or 0))
GRANITE = (
    *RMS,
    Value("logits_scaling", "logit_scale", lambda config: 1 / config.logit_scale, required=False),
    Value("attention_multiplier", "attention.scale", attrgetter("attention_scale"), required=False),
    Value("embedding_multiplier", "embedding_scale", attrgetter("embedding_scale"), required=False),
    Value("residual_multiplier", "residual_scale", attrgetter("residual_scale"), required=False),
)


LOGIT_SCALE = _field("logit_scale", "logit_scale")
PARALLEL = Value("use_parallel_residual", "use_parallel_residual", attrgetter("parallel_residual"))


def _layer_norm(name: str) -> Value:
    return Value(name, "attention.layer_norm_epsilon", attrgetter("norm_eps"))


def _mixer_field(name: str, key: str, of: str) -> Value:
    return Value(name, key, lambda config: getattr(config.mixer, of, None))


SHARED_EXPERT = replace(
    _expert_field("shared_intermediate_size", "expert_shared_feed_forward_length"),
    name="shared_expert_intermediate_size",
)
LFM2 = (*RMS, _mixer_field("conv_L_cache", "shortconv.l_cache", "kernel"))
LFM2_MOE = (
    *LFM2,
    *EXPERTS,
    EXPERT_SIZE,
    Value(
        "num_dense_layers",
        "leading_dense_block_count",
        lambda config: None if config.moe is None else len(config.moe.dense_layers),
        required=False,
    ),
)
GRANITE_HYBRID = (
    *GRANITE,
    _mixer_field("mamba_d_conv", "ssm.conv_kernel", "kernel"),
    _mixer_field("mamba_d_state", "ssm.state_size", "state_size"),
    _mixer_field("mamba_n_groups", "ssm.group_count", "groups"),
    _mixer_field("mamba_n_heads", "ssm.time_step_rank", "heads"),
)
DELTA_NET = (
    _mixer_field("linear_conv_kernel_dim", "ssm.conv_kernel", "kernel"),
    _mixer_field("linear_key_head_dim", "ssm.state_size", "key_dim"),
    _mixer_field("linear_num_key_heads", "ssm.group_count", "key_heads"),
    _mixer_field("linear_num_value_heads", "ssm.time_step_rank", "value_heads"),
)


@dataclass(frozen=True)
class Contents:
    """What a file holds: its metadata, the shapes of its tensors, and ``values``, which reads a small tensor."""

    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    values: Callable[[str], list[float]]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture. Raises LlmcliError if there is none."""
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str):
            raise LlmcliError("the metadata has no general.architecture", "the file holds no language model")
        return name

    def find(self, key: str) -> Any:
        """A value of the architecture; None if it is missing. Numbers are the decimals that float32 stores."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return float(f"{value:.7g}") if type(value) is float else value

    def need(self, key: str) -> Any:
        """A value of the architecture, the same for all layers that have one (0: none).

        Raises LlmcliError if it is missing or differs.
        """
        value = self.find(key)
        if isinstance(value, list):
            value = [each for each in value if each] or value
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]
        if value is None:
            raise LlmcliError(f"the metadata has no {self.architecture}.{key}", "the file may be damaged")
        if isinstance(value, list):
            raise wrong(key, "a list", "the same for all layers")
        return value

    def count(self, key: str, default: int) -> int:
        """A whole number of the architecture, at least 1. Raises LlmcliError if it is something else."""
        value = self.find(key)
        if value is None:
            return default
        if not isinstance(value, int) or value < 1:
            raise wrong(key, value, "a whole number above 0")
        return value

    @property
    def head_dim(self) -> int:
        """The size of a head. Raises LlmcliError if the numbers that it follows from are not whole."""
        return self.count("attention.key_length", self.count("embedding_length", 1) // self.count(HEADS, 1))


@dataclass(frozen=True)
class Architecture:
    """A family as GGUF files store it: its ``model_type``, its tensors' names, and what is special in its metadata.

    ``values`` are the numbers that not all families have; ``extra`` makes the keys of config.json that are no such
    numbers, and ``more`` the metadata. ``keys`` has the family's names for keys of config.json. ``norm_shift`` is added
    to stored norms, but not to those of mixers. ``refused`` returns the fields of a config that llama.cpp does not
    accept, although metadata can express them.
    """

    model_type: str
    names: Names = NAMES
    values: tuple[Value, ...] = RMS
    extra: Callable[[Contents], dict[str, Any]] = lambda contents: {}
    norm_shift: float = 0.0
    refused: Callable[[ModelConfig], list[str]] = lambda config: []
    keys: Mapping[str, str] = field(default_factory=dict)
    more: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}

    def family(self, parsed: Family) -> Family:
        """The family ``parsed`` with the tensors of a GGUF file."""
        return replace(parsed, rules=self.rules, renamed=(), dropped=DROPPED)

    def rules(self, config: ModelConfig) -> list[Rule]:
        """A rule for every parameter of a ``Transformer`` with this config."""
        return [
            replace(rule, sources=tuple(replace(source, shift=self.norm_shift) for source in rule.sources))
            if rule.target.endswith("norm.weight") and not rule.target.endswith("mixer.norm.weight")
            else rule
            for rule in self.names.rules(config)
        ]


def architecture_of(contents: Contents) -> Architecture:
    """The architecture of a file. Raises LlmcliError, which lists the known ones, if it is unknown."""
    name, kind = contents.architecture, str(contents.metadata.get("general.type"))
    if kind in COMPANIONS:
        raise LlmcliError(f"the file holds {COMPANIONS[kind]}, not a model", "open the model that it belongs to")
    if name == "llama" and contents.find("expert_count"):
        return _MIXTRAL
    if name == "olmo2" and contents.find(WINDOW.key):
        return _OLMO3
    check_architecture(name)
    return ARCHITECTURES[name]


def check_architecture(name: str) -> None:
    """Raise LlmcliError, which lists the known architectures, if this one is unknown."""
    if name not in ARCHITECTURES:
        raise LlmcliError(f"the architecture {name!r:.80} is not supported", "supported: " + ", ".join(ARCHITECTURES))


def architecture_for(config: ModelConfig) -> tuple[str, Architecture]:
    """The architecture that stores a model, with its name. Raises LlmcliError, which lists them, if there is none."""
    if config.model_type == _MIXTRAL.model_type:
        return "llama", _MIXTRAL
    if config.model_type == _OLMO3.model_type:
        return "olmo2", _OLMO3
    wanted = SAME.get(config.model_type, config.model_type)
    for name, architecture in ARCHITECTURES.items():
        if architecture.model_type == wanted:
            return name, architecture
    raise LlmcliError(
        f"models of the family {config.model_type} cannot be written as GGUF", "supported: " + ", ".join(ARCHITECTURES)
    )


def described(contents: Contents) -> dict[str, Any]:
    """The config.json of the model in a file. Raises LlmcliError if the metadata lacks a value that all models have."""
    architecture = architecture_of(contents)
    if "token_embd.weight" not in contents.shapes:
        raise LlmcliError("the file has no tensor token_embd.weight", "it holds no language model, or only a part")
    raw = {
        "model_type": architecture.model_type,
        "vocab_size": contents.shapes["token_embd.weight"][0],
        "num_key_value_heads": contents.need(HEADS),
        "tie_word_embeddings": "output.weight" not in contents.shapes,
        "rope_theta": 10000.0,
        "rope_scaling": _scaling(contents),
    }
    for value in {value.name: value for value in (*SHARED, *architecture.values)}.values():
        if value.required or contents.find(value.key) is not None:
            raw[value.name] = contents.need(value.key)
    raw |= architecture.extra(contents)
    rotated = contents.head_dim if "partial_rotary_factor" not in raw else None
    for key, size in {"attention.value_length": contents.head_dim, "rope.dimension_count": rotated}.items():
        if size is not None and contents.count(key, size) != size:
            raise wrong(key, contents.find(key), str(size))
    # The ids stay even if there are none: a family's defaults are not for a file without such tokens.
    ids = {f"{role}_token_id": contents.metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos")}
    return {architecture.keys.get(key, key): value for key, value in raw.items() if value is not None} | ids


def metadata_of(config: ModelConfig) -> dict[str, Any]:
    """The inverse of ``described``: the metadata of a model, without its tokenizer.

    Raises LlmcliError if no architecture stores the family. Metadata cannot express every config.
    """
    name, architecture = architecture_for(config)
    values = {value.key: value.of(config) for value in (*SHARED, *architecture.values)}
    values |= {"vocab_size": config.vocab_size, "attention.value_length": config.head_dim}
    if config.rope is not None:
        values["rope.dimension_count"] = config.rope.rotated(config.head_dim)
        values |= _stored_scaling(config.rope)
    values |= architecture.more(config)
    metadata = {f"{name}.{key}": value for key, value in values.items() if value is not None}
    return {"general.architecture": name, **metadata}


def _stored_scaling(rope: RopeConfig) -> dict[str, Any]:
    """The inverse of ``_scaling``, without tensors of factors."""
    original = {"rope.scaling.original_context_length": rope.original_max_position_embeddings}
    if rope.rope_type == "longrope":
        return {"rope.scaling.attn_factor": rope.attention_factor, **original}
    if rope.rope_type not in ("linear", "yarn"):
        return {}
    values: dict[str, Any] = {"rope.scaling.type": rope.rope_type, "rope.scaling.factor": rope.factor}
    if rope.rope_type == "yarn":
        betas = {f"rope.scaling.yarn_{name}": getattr(rope, name) for name in ("beta_fast", "beta_slow")}
        values |= {**original, **betas}
    return values


def factors_of(config: ModelConfig) -> dict[str, list[float]]:
    """The tensors of a file that divide the angle of each rotary pair, for Llama 3's scaling and for LongRoPE."""
    rope = config.rope
    if rope is not None and rope.rope_type == "longrope":
        return {
            "rope_factors_long.weight": list(rope.long_factor),
            "rope_factors_short.weight": list(rope.short_factor),
        }
    if rope is not None and rope.rope_type == "llama3":
        return {"rope_freqs.weight": _llama3_factors(rope, rope.rotated(config.head_dim))}
    return {}


def _llama3_factors(rope: RopeConfig, rotated: int) -> list[float]:
    """1 for fast pairs, ``factor`` for slow ones; in between, the speeds are interpolated."""
    factors = []
    for feature in range(0, rotated, 2):
        turns = rope.original_max_position_embeddings * rope.theta ** (-feature / rotated) / (2 * math.pi)
        keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        keep = min(max(keep, 0.0), 1.0)
        factors.append(1 / (keep + (1 - keep) / rope.factor))
    return factors


def _scaling(contents: Contents) -> dict[str, Any] | None:
    """``rope_scaling``. Tensors of factors, one for each pair, are LongRoPE's; Llama 3's are those for any length."""
    context, original = contents.need("context_length"), contents.find("rope.scaling.original_context_length")
    stored = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
    if "rope_freqs.weight" in contents.shapes:
        stored, original = dict.fromkeys(stored, "rope_freqs.weight"), context
    if all(math.prod(contents.shapes.get(name, (MAX_FACTORS + 1,))) <= MAX_FACTORS for name in stored.values()):
        scaling: dict[str, Any] = {key: contents.values(name) for key, name in stored.items()}
        attention = contents.find("rope.scaling.attn_factor")
        scaling |= {"rope_type": "longrope", "original_max_position_embeddings": original or context}
        return scaling | ({} if attention is None else {"attention_factor": attention})
    kind, factor = contents.find("rope.scaling.type"), contents.find("rope.scaling.factor")
    if kind is None and contents.find("rope.scale_linear"):  # as old files have it
        kind, factor = "linear", contents.find("rope.scale_linear")
    if kind in (None, "none") or factor in (None, 0.0, 1.0):
        return None
    if kind == "yarn":
        betas = {name: contents.find(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
        return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original or context, **betas}
    return {"rope_type": kind, "factor": factor}


def _biases(contents: Contents) -> dict[str, Any]:
    biases = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}
    return {key: name in contents.shapes for key, name in biases.items()}


def _normalized_experts(contents: Contents) -> dict[str, Any]:
    return {"norm_topk_prob": True}


def _gemma(contents: Contents, largest: int) -> dict[str, Any]:
    """The queries' scale is that of the head's size, but of the hidden size per head in the model of most layers."""
    per_head = contents.count("embedding_length", 1) // contents.count(HEADS, 1)
    scalar = per_head if contents.need("block_count") == largest else contents.head_dim
    return {"query_pre_attn_scalar": float(scalar)}


def _partly_rotated(contents: Contents) -> dict[str, Any]:
    size = contents.head_dim
    return {"partial_rotary_factor": contents.count("rope.dimension_count", size) / max(size, 1)}


def _phi3(contents: Contents) -> dict[str, Any]:
    return _partly_rotated(contents) | {"sliding_window": contents.find(WINDOW.key) or None}


def _stablelm(contents: Contents) -> dict[str, Any]:
    return _partly_rotated(contents) | {
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in contents.shapes,
        "use_qkv_bias": "blk.0.attn_q.bias" in contents.shapes,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in contents.shapes,
    }


def _cohere(contents: Contents) -> dict[str, Any]:
    return {"use_qk_norm": "blk.0.attn_q_norm.weight" in contents.shapes}


def _refusing(**wanted: Callable[[ModelConfig], bool]) -> Callable[[ModelConfig], list[str]]:
    """``Architecture.refused``: the names of the conditions that a config does not meet."""
    return lambda config: [name for name, meets in wanted.items() if not meets(config)]


def _even(config: ModelConfig) -> bool:
    return config.q_size == config.hidden_size


def _tied(config: ModelConfig) -> bool:
    return config.tie_word_embeddings


def _untied(config: ModelConfig) -> bool:
    return not config.tie_word_embeddings


def _no_biases(config: ModelConfig) -> bool:
    return not (config.qkv_bias or config.out_bias or config.mlp_bias)


def _windows_in(period: int) -> Callable[[ModelConfig], bool]:
    """Whether all layers but every ``period``-th have a window, as llama.cpp assumes."""
    return lambda config: (
        config.sliding_window is not None
        and all(
            (kind == "full_attention") == ((layer + 1) % period == 0) for layer, kind in enumerate(config.layer_types)
        )
    )


def _gpt_oss(contents: Contents) -> dict[str, Any]:
    """Metadata cannot say that YaRN's range is not rounded, but the family's never is."""
    scaling = _scaling(contents) or {"rope_type": "default"}
    return {
        "attention_bias": "blk.0.attn_q.bias" in contents.shapes,
        "rope_scaling": scaling | {"truncate": False},
    }


def _same_theta(config: ModelConfig) -> bool:
    """Whether windowed layers rotate like the others would without scaling."""
    rope, local = config.rope, config.local_rope
    return rope is not None and local is not None and (local.rope_type, local.theta) == ("default", rope.theta)


def _olmo3(contents: Contents) -> dict[str, Any]:
    """Only layers without a window scale their angles."""
    theta = contents.find("rope.freq_base") or 10000.0
    scaled = (_scaling(contents) or {}) | {"rope_theta": theta}
    nested = {"full_attention": scaled, "sliding_attention": {"rope_theta": theta}}
    return {"rope_scaling": None, "rope_parameters": nested}


def _seed_oss(contents: Contents) -> dict[str, Any]:
    return _biases(contents) | {"attention_out_bias": "blk.0.attn_output.bias" in contents.shapes}


def _kv_heads(config: ModelConfig) -> dict[str, Any]:
    """The key/value heads of each layer; recurrent layers have none."""
    layers = range(config.num_hidden_layers)
    return {KV_HEADS: [config.num_key_value_heads if config.has_attention(layer) else 0 for layer in layers]}


def _kinds(contents: Contents, recurrent: str) -> list[str]:
    """The kinds of the layers, by their key/value heads."""
    heads = contents.find(KV_HEADS)
    heads = heads if isinstance(heads, list) else [1] * contents.count("block_count", 1)
    return ["full_attention" if each else recurrent for each in heads]


def _lfm2(contents: Contents) -> dict[str, Any]:
    return {"layer_types": _kinds(contents, "conv"), "block_auto_adjust_ff_dim": False}


SIGMOID = 2  # llama.cpp's number


def _lfm2_moe(contents: Contents) -> dict[str, Any]:
    if contents.find("expert_gating_func") != SIGMOID:
        raise wrong("expert_gating_func", contents.find("expert_gating_func"), f"{SIGMOID} (sigmoid)")
    return {"layer_types": _kinds(contents, "conv")}


def _granite_hybrid(contents: Contents) -> dict[str, Any]:
    """In models with experts, the MLP that other models have serves every token."""
    experts, kinds = contents.find("expert_count") or 0, _kinds(contents, "mamba")
    attending = f"blk.{kinds.index('full_attention') if 'full_attention' in kinds else 0}."
    shared = "expert_shared_feed_forward_length" if experts else "feed_forward_length"
    return {
        "num_local_experts": experts,
        "num_experts_per_tok": contents.find("expert_used_count") if experts else None,
        "shared_intermediate_size": contents.need(shared),
        "layer_types": kinds,
        "position_embedding_type": "nope" if contents.find("rope.scaling.finetuned") is False else "rope",
        "attention_bias": f"{attending}attn_q.bias" in contents.shapes,
        "mamba_conv_bias": any(name.endswith("ssm_conv1d.bias") for name in contents.shapes),
    }


def _granite_hybrid_more(config: ModelConfig) -> dict[str, Any]:
    experts: dict[str, Any] = {"expert_count": 0}
    if config.moe is not None:
        experts = {
            "feed_forward_length": config.moe.intermediate_size,
            "expert_count": config.moe.num_experts,
            "expert_used_count": config.moe.num_experts_per_tok,
            "expert_shared_feed_forward_length": config.moe.shared_intermediate_size,
        }
    width = config.mixer.width if isinstance(config.mixer, MambaConfig) else None
    scaling = {"rope.scaling.finetuned": config.position == "rope"}
    return {"ssm.inner_size": width, **_kv_heads(config), **scaling, **experts}


def _delta_net(contents: Contents) -> dict[str, Any]:
    """Layers that predict several tokens at once are last, and not read."""
    more = contents.find("nextn_predict_layers")
    layers = contents.count("block_count", 1) - (more if isinstance(more, int) else 0)
    recurrent, interval = contents.find("attention.recurrent_layers"), contents.count("full_attention_interval", 4)
    if not isinstance(recurrent, list):
        recurrent = [(layer + 1) % interval != 0 for layer in range(layers)]
    kinds = ["linear_attention" if each else "full_attention" for each in recurrent[:layers]]
    heads = contents.count("ssm.time_step_rank", 1)
    return _partly_rotated(contents) | {
        "num_hidden_layers": layers,
        "layer_types": kinds,
        "linear_value_head_dim": contents.count("ssm.inner_size", heads) // heads,
    }


def _delta_net_more(config: ModelConfig) -> dict[str, Any]:
    layers = range(config.num_hidden_layers)
    width = config.mixer.values if isinstance(config.mixer, DeltaNetConfig) else None
    kinds = {"attention.recurrent_layers": [config.has_mixer(layer) for layer in layers]}
    return {"ssm.inner_size": width, "full_attention_interval": 4, **kinds}


def _qwen3_5_more(config: ModelConfig) -> dict[str, Any]:
    """Pairs rotate by three positions, which differ only in images; the sections are those of all published models."""
    return _delta_net_more(config) | {"rope.dimension_sections": [11, 11, 10, 0]}


def _same_dims(config: ModelConfig) -> bool:
    """Whether the heads of a delta net have keys and values of the same size."""
    return not isinstance(config.mixer, DeltaNetConfig) or config.mixer.key_dim == config.mixer.value_dim


ARCHITECTURES = {
    "llama": Architecture("llama", PAIRED, extra=_biases),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "qwen3moe": Architecture("qwen3_moe", NAMES, (*EXPERTS, EXPERT_SIZE), _normalized_experts),
    "qwen2moe": Architecture("qwen2_moe", SHARED_NAMES, (*EXPERTS, EXPERT_SIZE, SHARED_EXPERT)),
    "gemma2": Architecture(
        "gemma2", NAMES, GEMMA2, lambda contents: _gemma(contents, 46), -1.0, _refusing(tie_word_embeddings=_tied)
    ),
    "gemma3": Architecture("gemma3_text", NAMES, GEMMA3, lambda contents: _gemma(contents, 62), -1.0),
    "phi2": Architecture(
        "phi", UNGATED, (_layer_norm("layer_norm_eps"),), _partly_rotated, refused=_refusing(head_dim=_even)
    ),
    "phi3": Architecture("phi3", STACKED, PHI3, _phi3, refused=_refusing(head_dim=_even)),
    "smollm3": Architecture(
        "smollm3",
        PAIRED,
        extra=_biases,
        refused=_refusing(
            attention_bias=lambda config: not config.out_bias, mlp_bias=lambda config: not config.mlp_bias
        ),
    ),
    "granite": Architecture("granite", PAIRED, GRANITE, _biases),
    "olmo2": Architecture("olmo2"),
    "olmoe": Architecture(
        "olmoe",
        NAMES,
        EXPERTS,
        refused=_refusing(
            head_dim=_even,
            num_key_value_heads=lambda config: config.kv_size == config.q_size,
            tie_word_embeddings=_untied,
        ),
    ),
    "gpt2": Architecture(
        "gpt2",
        STACKED,
        (_layer_norm("layer_norm_epsilon"),),
        keys={
            "hidden_size": "n_embd",
            "intermediate_size": "n_inner",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
        },
    ),
    "gptneox": Architecture(
        "gpt_neox",
        STACKED,
        (_layer_norm("layer_norm_eps"), PARALLEL),
        _partly_rotated,
        refused=_refusing(head_dim=_even, attention_bias=lambda config: config.qkv_bias, tie_word_embeddings=_untied),
    ),
    "starcoder2": Architecture(
        "starcoder2",
        UNGATED,
        (_layer_norm("norm_epsilon"),),
        lambda contents: {"use_bias": "blk.0.attn_q.bias" in contents.shapes},
        refused=_refusing(head_dim=_even),
    ),
    "stablelm": Architecture(
        "stablelm",
        NAMES,
        (_layer_norm("layer_norm_eps"), replace(PARALLEL, required=False)),
        _stablelm,
        refused=_refusing(head_dim=_even, tie_word_embeddings=_untied),
    ),
    "command-r": Architecture(
        "cohere",
        PAIRED,
        (_layer_norm("layer_norm_eps"), LOGIT_SCALE),
        _cohere,
        refused=_refusing(
            head_dim=_even,
            tie_word_embeddings=_tied,
            qk_norm=lambda config: (config.qk_norm is not None) == (config.num_hidden_layers >= 64),
        ),
    ),
    "cohere2": Architecture(
        "cohere2",
        PAIRED,
        (_layer_norm("layer_norm_eps"), LOGIT_SCALE, WINDOW),
        refused=_refusing(
            head_dim=_even, tie_word_embeddings=_tied, attention_bias=_no_biases, layer_types=_windows_in(4)
        ),
    ),
    "gpt-oss": Architecture(
        "gpt_oss",
        replace(NAMES, mlp_norm="post_attention_norm", sinks="attn_sinks.weight"),
        (*EXPERTS, replace(EXPERT_SIZE, required=False), WINDOW),
        _gpt_oss,
        refused=_refusing(
            attention_bias=lambda config: config.qkv_bias,
            layer_types=_windows_in(2),
            rope_scaling=lambda config: (
                config.rope is None or config.rope.rope_type != "yarn" or not config.rope.truncate
            ),
            swiglu_limit=lambda config: config.gate_limit == 7.0,
        ),
    ),
    "seed_oss": Architecture(
        "seed_oss",
        replace(NAMES, mlp_norm="post_attention_norm"),
        extra=_seed_oss,
        refused=_refusing(
            attention_out_bias=lambda config: not config.out_bias, mlp_bias=lambda config: not config.mlp_bias
        ),
    ),
    "arcee": Architecture(
        "arcee", replace(PAIRED, up=("ffn_up",)), extra=_biases, refused=_refusing(attention_bias=_no_biases)
    ),
    "ernie4_5": Architecture(
        "ernie4_5",
        PAIRED,
        extra=lambda contents: {"use_bias": "blk.0.attn_q.bias" in contents.shapes},
        refused=_refusing(use_bias=_no_biases),
    ),
    "glm4": Architecture(
        "glm4",
        replace(PAIRED, up=("ffn_up",)),
        extra=lambda contents: _partly_rotated(contents) | {"attention_bias": "blk.0.attn_q.bias" in contents.shapes},
    ),
    "lfm2": Architecture(
        "lfm2",
        LFM2_NAMES,
        LFM2,
        _lfm2,
        refused=_refusing(head_dim=_even),
        keys={"rms_norm_eps": "norm_eps"},
        more=_kv_heads,
    ),
    "lfm2moe": Architecture(
        "lfm2_moe",
        LFM2_NAMES,
        LFM2_MOE,
        _lfm2_moe,
        refused=_refusing(head_dim=_even),
        keys={"rms_norm_eps": "norm_eps"},
        more=lambda config: _kv_heads(config) | {"expert_gating_func": SIGMOID},
    ),
    "qwen35": Architecture(
        "qwen3_5_text",
        replace(DELTA_NET_NAMES, mixer=delta_net),
        (*RMS, *DELTA_NET),
        _delta_net,
        -1.0,
        _refusing(linear_value_head_dim=_same_dims),
        more=_qwen3_5_more,
    ),
    "qwen35moe": Architecture(
        "qwen3_5_moe_text",
        replace(DELTA_NET_NAMES, mixer=delta_net),
        (
            *EXPERTS,
            EXPERT_SIZE,
            SHARED_EXPERT,
            *DELTA_NET,
            _field("intermediate_size", "feed_forward_length", required=False),
        ),
        _delta_net,
        -1.0,
        _refusing(linear_value_head_dim=_same_dims),
        more=_qwen3_5_more,
    ),
    "qwen3next": Architecture(
        "qwen3_next",
        replace(DELTA_NET_NAMES, mixer=delta_net_by_head),
        (*EXPERTS, EXPERT_SIZE, SHARED_EXPERT, *DELTA_NET),
        lambda contents: _delta_net(contents) | _normalized_experts(contents),
        -1.0,
        _refusing(linear_value_head_dim=_same_dims),
        more=_delta_net_more,
    ),
    "granitehybrid": Architecture(
        "granitemoehybrid",
        replace(SHARED_NAMES, interleaved=True, mixer=mamba),
        GRANITE_HYBRID,
        _granite_hybrid,
        more=_granite_hybrid_more,
    ),
    "hunyuan-dense": Architecture("hunyuan_v1_dense", extra=_biases, refused=_refusing(attention_bias=_no_biases)),
}
_MIXTRAL = Architecture("mixtral", PAIRED, EXPERTS)
_OLMO3 = Architecture(
    "olmo3",
    NAMES,
    (*RMS, replace(WINDOW, required=True)),
    _olmo3,
    refused=_refusing(
        attention_bias=_no_biases,
        head_dim=_even,
        layer_types=_windows_in(4),
        rope_parameters=_same_theta,
    ),
)
