"""Reading config.json's fields: typed, with the family's defaults, under one form of error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

from llmcli.errors import LlmcliError
from llmcli.model.config import Activation, LayerType

T = TypeVar("T", int, float, bool)

# Hugging Face's names of the activations we have.
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def field(raw: Mapping[str, Any], key: str, default: T) -> T:
    """``raw[key]`` of the same type as ``default``, which also stands in for null."""
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
    """What ``known`` gives for ``raw[key]``, or an error that lists what it knows."""
    value = raw.get(key)
    value = default if value is None else value
    if not isinstance(value, str) or value not in known:
        raise wrong(key, value, "one of " + ", ".join(known))
    return known[value]


def token_ids(raw: Mapping[str, Any], key: str, *default: int) -> tuple[int, ...]:
    """A token id or a list of them, as a tuple; empty for null, ``default`` where the key is left out."""
    value = raw.get(key, list(default))
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(i) is not int or i < 0 for i in ids):
        raise wrong(key, value, "a token id or a list of them")
    return tuple(ids)


def described_ids(ids: tuple[int, ...]) -> int | list[int] | None:
    """``token_ids``'s inverse: null for none, a number for one."""
    return list(ids) if len(ids) > 1 else ids[0] if ids else None


def optional(raw: Mapping[str, Any], key: str, default: T | None, kind: type[T]) -> T | None:
    """Like ``field``, but null means that there is none."""
    if key not in raw:
        return default
    return None if raw[key] is None else field(raw, key, kind())


def layer_types(raw: Mapping[str, Any], layers: int, windowed: Callable[[int], bool]) -> tuple[LayerType, ...]:
    """config.json's ``layer_types``; where it has none, the layers that ``windowed`` picks see a window."""
    value = raw.get("layer_types")
    if value is None:
        return tuple("sliding_attention" if windowed(i) else "full_attention" for i in range(layers))
    known = get_args(LayerType)
    if not isinstance(value, list) or any(entry not in known for entry in value):
        raise wrong("layer_types", value, "a list of " + " and ".join(known))
    return tuple(value)


def num_experts(raw: Mapping[str, Any], default: int) -> int:
    """How many experts a layer has: ``num_experts`` or, as transformers writes it, ``num_local_experts``."""
    return field(raw, "num_experts", field(raw, "num_local_experts", default))


def numbers(raw: Mapping[str, Any], key: str) -> tuple[float, ...]:
    """A list of numbers; empty where there is none."""
    value = raw.get(key) or []
    if not isinstance(value, list) or any(type(entry) not in (int, float) for entry in value):
        raise wrong(key, value, "a list of numbers")
    return tuple(float(entry) for entry in value)


def wrong(key: str, value: object, wanted: str) -> LlmcliError:
    """The error of a value that config.json should not have."""
    return LlmcliError(f"config.json: {key} is {value!r}, not {wanted}", "this model is not supported")
