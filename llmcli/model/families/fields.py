"""Typed access to config.json: single fields, and the fields that nearly all families share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from llmcli.errors import LlmcliError
from llmcli.model.config import MAX_LAYERS, MAX_POSITIONS, MAX_WIDTH, ROPE_TYPES, LayerType, RopeConfig

if TYPE_CHECKING:
    from llmcli.model.activations import Activation

T = TypeVar("T", int, float, bool)

# By Hugging Face's names.
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "gelu_sigmoid",
    "relu": "relu",
    "relu2": "relu_squared",
    "relu6": "relu6",
    "leaky_relu": "leaky_relu",
    "hardswish": "hardswish",
    "mish": "mish",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "linear": "linear",
    "xielu": "xielu",
}


def field(raw: Mapping[str, Any], key: str, default: T) -> T:
    """``raw[key]``; ``default`` if it is missing or null.

    Raises LlmcliError if the value has another type than ``default``, or is NaN or infinite.
    """
    value = raw.get(key)
    if value is None:
        return default
    if type(default) is float and type(value) is int:
        value = float(value) if abs(value) < 2**1023 else math.inf
    if type(value) is not type(default):
        raise wrong(key, value, {int: "a whole number", float: "a number", bool: "true or false"}[type(default)])
    if type(default) is float and not math.isfinite(value):
        raise wrong(key, value, "a finite number")
    return value


def choice(raw: Mapping[str, Any], key: str, default: str, known: Mapping[str, Activation]) -> Activation:
    """The entry of ``known`` for ``raw[key]``. Raises LlmcliError, which lists the known values, if there is none."""
    value = raw.get(key)
    value = default if value is None else value
    if not isinstance(value, str) or value not in known:
        raise wrong(key, value, "one of " + ", ".join(known))
    return known[value]


def token_ids(raw: Mapping[str, Any], key: str, *default: int) -> tuple[int, ...]:
    """A token id or a list of them, as a tuple; empty for null, ``default`` if the key is missing.

    Some files write -1 where there is no such token.
    """
    value = raw.get(key, list(default))
    ids = value if isinstance(value, list) else [] if value is None else [value]
    ids = [id for id in ids if id != -1]
    if any(type(i) is not int or i < 0 for i in ids):
        raise wrong(key, value, "a token id or a list of them")
    return tuple(ids)


def described_ids(ids: tuple[int, ...]) -> int | list[int] | None:
    """The inverse of ``token_ids``: None for no ids, a number for one."""
    return list(ids) if len(ids) > 1 else ids[0] if ids else None


def optional(raw: Mapping[str, Any], key: str, default: T | None, kind: type[T]) -> T | None:
    """Like ``field``, but null means None."""
    if key not in raw:
        return default
    return None if raw[key] is None else field(raw, key, kind())


def layer_types(
    raw: Mapping[str, Any], layers: int, windowed: Callable[[int], bool], name: str = "sliding_attention"
) -> tuple[LayerType, ...]:
    """config.json's ``layer_types``, in which windowed layers are called ``name``.

    If it has none, the layers for which ``windowed`` is true have a window.
    """
    value = raw.get("layer_types")
    if value is None:
        return tuple("sliding_attention" if windowed(i) else "full_attention" for i in range(layers))
    return _listed("layer_types", value, {"full_attention": "full_attention", name: "sliding_attention"})


def recurrent_layers(
    raw: Mapping[str, Any], layers: int, name: str, recurrent: Callable[[int], bool]
) -> tuple[LayerType, ...]:
    """config.json's ``layer_types``, in which recurrent layers are called ``name``.

    If it has none, the layers for which ``recurrent`` is true are recurrent.
    """
    value = raw.get("layer_types")
    if value is None:
        return tuple("recurrent" if recurrent(layer) else "full_attention" for layer in range(layers))
    return _listed("layer_types", value, {name: "recurrent", "full_attention": "full_attention"})


def _listed(key: str, value: object, known: Mapping[str, LayerType]) -> tuple[LayerType, ...]:
    if not isinstance(value, list) or any(entry not in [*known] for entry in value):
        raise wrong(key, value, "a list of " + " and ".join(known))
    return tuple(known[entry] for entry in value)


def num_experts(raw: Mapping[str, Any], default: int) -> int:
    """Experts per layer: ``num_experts`` or, as transformers writes it, ``num_local_experts``."""
    return field(raw, "num_experts", field(raw, "num_local_experts", default))


def numbers(raw: Mapping[str, Any], key: str) -> tuple[float, ...]:
    """A list of numbers; empty if the key is missing."""
    value = raw.get(key) or []
    if not isinstance(value, list) or any(type(entry) not in (int, float) for entry in value):
        raise wrong(key, value, "a list of numbers")
    return tuple(float(entry) for entry in value)


def wrong(key: str, value: object, wanted: str) -> LlmcliError:
    """The error for an unsupported value in config.json."""
    return LlmcliError(f"config.json: {key} is {value!r}, not {wanted}", "this model is not supported")


@dataclass(frozen=True)
class Defaults:
    """A family's defaults, which are those of its config class in transformers: published files omit such values.

    ``num_key_value_heads`` None: as many as query heads. ``head_dim`` None: hidden_size / num_attention_heads.
    ``partial_rotary_factor`` None: the family always rotates whole heads. The fields that end in ``_key`` are the
    family's names for keys.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    tie_word_embeddings: bool = False
    norm_eps: float = 1e-6
    norm_eps_key: str = "rms_norm_eps"
    hidden_act: str = "silu"
    hidden_act_key: str = "hidden_act"
    rope_theta: float = 10000.0
    partial_rotary_factor: float | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None


def common(raw: Mapping[str, Any], defaults: Defaults) -> dict[str, Any]:
    """``ModelConfig``'s arguments from a config.json with Llama's keys."""
    hidden = _size(raw, "hidden_size", defaults.hidden_size, MAX_WIDTH)
    heads = field(raw, "num_attention_heads", defaults.num_attention_heads)
    kv_heads = defaults.num_key_value_heads if "num_key_value_heads" not in raw else None
    if not defaults.head_dim and raw.get("head_dim") is None and heads > 0 and hidden % heads:
        raise LlmcliError(
            f"config.json: hidden_size ({hidden}) must be a multiple of num_attention_heads ({heads})",
            "the file may be damaged",
        )
    context = field(raw, "max_position_embeddings", defaults.max_position_embeddings)
    rotary = rope(raw, context, defaults.rope_theta, defaults.partial_rotary_factor)
    return {
        "model_type": defaults.model_type,
        "vocab_size": field(raw, "vocab_size", defaults.vocab_size),
        "hidden_size": hidden,
        "intermediate_size": field(raw, "intermediate_size", defaults.intermediate_size),
        "num_hidden_layers": _size(raw, "num_hidden_layers", defaults.num_hidden_layers, MAX_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": field(raw, "num_key_value_heads", kv_heads or heads),
        "head_dim": field(raw, "head_dim", defaults.head_dim or hidden // max(heads, 1)),
        "max_position_embeddings": scaled_context(rotary, context),
        "tie_word_embeddings": field(raw, "tie_word_embeddings", defaults.tie_word_embeddings),
        "norm_eps": field(raw, defaults.norm_eps_key, defaults.norm_eps),
        "activation": choice(raw, defaults.hidden_act_key, defaults.hidden_act, ACTIVATIONS),
        "rope": rotary,
        "bos_token_id": next(iter(token_ids(raw, "bos_token_id", *_tuple(defaults.bos_token_id))), None),
        "eos_token_ids": token_ids(raw, "eos_token_id", *_tuple(defaults.eos_token_id)),
        "eos_by_default": "eos_token_id" not in raw and defaults.eos_token_id is not None,
    }


def _size(raw: Mapping[str, Any], key: str, default: int, most: int) -> int:
    """A size from 1 to ``most``, checked here because families compute with it before ``ModelConfig`` checks it."""
    size = field(raw, key, default)
    if not 1 <= size <= most:
        raise wrong(key, size, f"a whole number from 1 to {most}")
    return size


def _tuple(id: int | None) -> tuple[int, ...]:
    return () if id is None else (id,)


def rope(
    raw: Mapping[str, Any], context: int, theta: float, partial: float | None, layer_type: str = "full_attention"
) -> RopeConfig:
    """Rotary settings from either generation of config.json: ``rope_theta`` + ``rope_scaling``, or ``rope_parameters``.

    ``rope_parameters`` may be nested by layer type. ``theta`` and ``partial`` are the family's defaults.

    A ``partial_rotary_factor`` in the file counts only for families that can rotate part of a head. Llama and its kin
    were trained with whole heads rotated, whatever their files say: transformers ignores the key for
    them, and no published model of these families needs it. (vLLM reads it, because its Phi-3 shares Llama's code.)
    """
    scaling = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(scaling, Mapping):
        raise wrong("rope_scaling", scaling, "an object")
    context = min(max(context, 1), MAX_POSITIONS)  # ModelConfig reports values outside this range
    nested = scaling.get(layer_type)
    scaling = nested if isinstance(nested, Mapping) else scaling
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise wrong("rope_type", rope_type, "one of " + ", ".join(ROPE_TYPES))
    if rope_type == "proportional" and partial is None:  # a share is part of its definition, whatever the family
        partial = 1.0
    original = field(scaling, "original_max_position_embeddings", context)
    original = field(raw, "original_max_position_embeddings", original)
    parsed = RopeConfig(
        theta=field(scaling, "rope_theta", field(raw, "rope_theta", theta)),
        rope_type=rope_type,
        partial_rotary_factor=1.0 if partial is None else _rotated_share(raw, scaling, partial),
        factor=field(scaling, "factor", context / max(original, 1)),
        original_max_position_embeddings=context if rope_type == "dynamic" else original,
        low_freq_factor=field(scaling, "low_freq_factor", 1.0),
        high_freq_factor=field(scaling, "high_freq_factor", 4.0),
        beta_fast=field(scaling, "beta_fast", 32.0),
        beta_slow=field(scaling, "beta_slow", 1.0),
        truncate=field(scaling, "truncate", True),
        short_factor=numbers(scaling, "short_factor"),
        long_factor=numbers(scaling, "long_factor"),
    )
    if rope_type in ("linear", "dynamic", "llama3") and "factor" not in scaling:
        raise LlmcliError(f"config.json: rope_type {rope_type!r} has no factor", "the file may be damaged")
    return replace(parsed, attention_factor=field(scaling, "attention_factor", _attention_factor(parsed, scaling)))


def _rotated_share(raw: Mapping[str, Any], scaling: Mapping[str, Any], default: float) -> float:
    return field(scaling, "partial_rotary_factor", field(raw, "partial_rotary_factor", default))


def _attention_factor(rope: RopeConfig, scaling: Mapping[str, Any]) -> float:
    """The default factor that compensates for flatter attention over a longer context.

    YaRN: Peng et al. 2023, section 3.4; LongRoPE: Ding et al. 2024, as in Phi-3.
    """
    if rope.factor <= 1:
        return 1.0
    if rope.rope_type == "yarn":
        one, all_dim = field(scaling, "mscale", 0.0), field(scaling, "mscale_all_dim", 0.0)
        if one and all_dim:
            return (0.1 * one * math.log(rope.factor) + 1) / (0.1 * all_dim * math.log(rope.factor) + 1)
        return 0.1 * math.log(rope.factor) + 1
    if rope.rope_type == "longrope":
        return math.sqrt(1 + math.log(rope.factor) / math.log(max(rope.original_max_position_embeddings, 2)))
    return 1.0


def scaled_context(rope: RopeConfig, context: int) -> int:
    """The context in tokens after scaling: files with "dynamic" or "yarn" rope may state the one before scaling."""
    if rope.rope_type in ("dynamic", "yarn") and rope.factor > 1 and context > 0:
        longest = rope.factor * rope.original_max_position_embeddings
        return max(context, int(min(longest, MAX_POSITIONS)))
    return context


def windowed(window: int | None, layers: int) -> dict[str, Any]:
    """``ModelConfig``'s arguments for a sliding window in all layers, or for none."""
    return {"sliding_window": window, "layer_types": () if window is None else ("sliding_attention",) * layers}
