"""Reading config.json's fields: typed, with the family's defaults, under one form of error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from llmcli.errors import LlmcliError
from llmcli.model.config import ROPE_TYPES, Activation, RopeConfig

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
        raise _wrong(key, value, {int: "a whole number", float: "a number", bool: "true or false"}[type(default)])
    if type(default) is float and not math.isfinite(value):
        raise _wrong(key, value, "a finite number")
    return value


def choice(raw: Mapping[str, Any], key: str, default: str, known: Mapping[str, Activation]) -> Activation:
    """What ``known`` gives for ``raw[key]``, or an error that lists what it knows."""
    value = raw.get(key)
    value = default if value is None else value
    if not isinstance(value, str) or value not in known:
        raise _wrong(key, value, "one of " + ", ".join(known))
    return known[value]


def token_ids(raw: Mapping[str, Any], key: str, *default: int) -> tuple[int, ...]:
    """A token id or a list of them, as a tuple; empty for null, ``default`` where the key is left out."""
    value = raw.get(key, list(default))
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(i) is not int or i < 0 for i in ids):
        raise _wrong(key, value, "a token id or a list of them")
    return tuple(ids)


def described_ids(ids: tuple[int, ...]) -> int | list[int] | None:
    """``token_ids``'s inverse: null for none, a number for one."""
    return list(ids) if len(ids) > 1 else ids[0] if ids else None


def rope(raw: Mapping[str, Any], default_theta: float) -> RopeConfig:
    """Both generations of config.json: ``rope_theta`` + ``rope_scaling``, and ``rope_parameters``."""
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise _wrong("rope_scaling", scaling, "an object")
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise _wrong("rope_type", rope_type, "one of " + ", ".join(ROPE_TYPES))
    theta = field(scaling, "rope_theta", field(raw, "rope_theta", default_theta))
    if rope_type != "default" and "factor" not in scaling:
        raise LlmcliError(f"config.json: rope_type {rope_type!r} has no factor", "the file may be damaged")
    return RopeConfig(
        theta=theta,
        rope_type=rope_type,
        factor=field(scaling, "factor", 1.0),
        low_freq_factor=field(scaling, "low_freq_factor", 1.0),
        high_freq_factor=field(scaling, "high_freq_factor", 4.0),
        original_max_position_embeddings=field(scaling, "original_max_position_embeddings", 0),
    )


def _wrong(key: str, value: object, wanted: str) -> LlmcliError:
    return LlmcliError(f"config.json: {key} is {value!r}, not {wanted}", "this model is not supported")
