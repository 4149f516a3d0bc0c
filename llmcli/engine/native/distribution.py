"""Passes of the compiled library over the logits or probabilities of a whole vocabulary, on the caller's thread.

After a step nothing is in the processor's cache, so each of torch's operations costs a step several percent.
All take fp32 vectors [V] that are ``compiled``.
"""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_double, c_float, c_int64, c_void_p
from typing import TYPE_CHECKING

from llmcli.engine.native.library import library
from llmcli.errors import LlmcliError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class Sums(ctypes.Structure):
    """Of logits: the ``largest`` one, and of e^(logit - largest) the ``total``, also ``weighted`` by that difference.

    The total is NaN or infinite if a logit is NaN or positive infinity, or all are negative infinity.
    """

    largest: float
    total: float
    weighted: float
    _fields_ = (("largest", c_double), ("total", c_double), ("weighted", c_double))


class Functions(ctypes.Structure):
    """``distribution_functions`` of ``src/distribution.h``."""

    softmax: Callable[[int, int, int | None, Sums], None]
    probability: Callable[[Sums, float], float]
    temper: Callable[[int, int, float, int], None]
    leading: Callable[[int, int, int, int], None]
    draw: Callable[[int, int, float], int]
    keep: Callable[[int, int, int, int, int], None]
    rank: Callable[[int, int, int], int]
    _fields_ = (
        ("softmax", CFUNCTYPE(None, c_void_p, c_int64, c_void_p, POINTER(Sums))),
        ("probability", CFUNCTYPE(c_float, POINTER(Sums), c_float)),
        ("temper", CFUNCTYPE(None, c_void_p, c_int64, c_double, c_void_p)),
        ("leading", CFUNCTYPE(None, c_void_p, c_int64, c_int64, c_void_p)),
        ("draw", CFUNCTYPE(c_int64, c_void_p, c_int64, c_double)),
        ("keep", CFUNCTYPE(None, c_void_p, c_void_p, c_int64, c_int64, c_void_p)),
        ("rank", CFUNCTYPE(c_int64, c_void_p, c_int64, c_int64)),
    )


def is_compiled(values: Tensor) -> bool:
    """Whether the functions below take these ``values``, [..., V]."""
    return (
        values.is_floating_point()
        and values.element_size() == 4
        and values.device.type == "cpu"
        and values.is_contiguous()
        and not values.requires_grad
        and values.numel() > 0
        and library() is not None
    )


def softmax(logits: Tensor) -> tuple[Tensor, float]:
    """The probabilities [..., V], and the sum of all their exponents; it is not finite if a logit is not."""
    probs, count, check, sums = logits.new_empty(logits.shape), logits.shape[-1], 0.0, Sums()
    for offset in range(0, logits.numel() * 4, count * 4):
        _functions().softmax(logits.data_ptr() + offset, count, probs.data_ptr() + offset, sums)
        check += sums.total
    return probs, check


def sums_of(logits: Tensor) -> Sums:
    """The sums that the softmax of ``logits`` needs."""
    sums = Sums()
    _functions().softmax(logits.data_ptr(), len(logits), None, sums)
    return sums


def probability(sums: Sums, logit: float) -> float:
    """The probability of a token with this logit."""
    return _functions().probability(sums, logit)


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """The logits less the largest one, divided by the temperature in fp64."""
    output = logits.new_empty(len(logits))
    _functions().temper(logits.data_ptr(), len(logits), temperature, output.data_ptr())
    return output


def leading(values: Tensor, n: int) -> Tensor:
    """The ids of the ``n`` largest values, the largest first; equal values are in the order of their ids."""
    import torch

    assert 0 < n <= len(values)
    ids = torch.empty(n, dtype=torch.int64)
    _functions().leading(values.data_ptr(), len(values), n, ids.data_ptr())
    return ids


def draw(probs: Tensor, u: float) -> int:
    """The token whose interval contains u. Raises LlmcliError if memory runs out."""
    token = _functions().draw(probs.data_ptr(), len(probs), u)
    if token < 0:
        raise LlmcliError("there is not enough memory to choose a token", "close other programs")
    return token


def keep(logits: Tensor, values: Tensor, last: int) -> Tensor:
    """The logits [V] without those of tokens that rank below ``last`` by their ``values`` [V]."""
    assert values.shape == logits.shape
    assert 0 <= last < len(values)
    kept = logits.new_empty(len(logits))
    _functions().keep(logits.data_ptr(), values.data_ptr(), len(logits), last, kept.data_ptr())
    return kept


def rank(values: Tensor, id: int) -> int:
    """How many values are larger than that of ``id``, or equal and have a smaller id."""
    assert 0 <= id < len(values)
    return _functions().rank(values.data_ptr(), len(values), id)


def _functions() -> Functions:
    found = library()
    assert found is not None
    return Functions.from_address(found.engine_distribution())
