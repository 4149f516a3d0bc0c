"""The check that weights contain neither NaN nor infinity, once, when they are read.

Attention kernels turn rows of NaN into zeros, so a single damaged weight can change a text silently. The check reads
the weights once, at the speed of memory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

SMALL = 2**16  # values that are looked at one by one
PARTS = 16  # of a tensor whose sum is not finite


@dataclass
class LoadNotes:
    """What loading a model found, filled while it loads.

    ``unused`` names the stored tensors that the model does not use; tensors whose names differ only in a number have
    one entry. ``restored`` are the formats of packed weights, such as blocks of a GGUF file, that were restored to
    floats.
    ``kept`` are those of weights that stay packed.
    ``text_only``: the model reads images, too, but only its text model was loaded.
    ``quantizes_activations``: the model's settings ask for quantized activations, which llmcli does not compute with.
    ``checked_bytes`` of weights were checked for NaN and infinity in ``check_seconds``.
    """

    unused: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    text_only: bool = False
    quantizes_activations: bool = False
    checked_bytes: int = 0
    check_seconds: float = 0.0

    def finite(self, weights: Tensor) -> bool:
        """Whether all ``weights`` are finite."""
        began = time.perf_counter()
        result = is_finite(weights)
        self.check_seconds += time.perf_counter() - began
        self.checked_bytes += weights.nbytes
        return result


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor of floats contains neither NaN nor infinity. A tensor on the meta device has no values.

    A sum with NaN or infinity is not finite, and summing is the fastest way to read memory. Large finite values can
    have a sum that is not finite, too, so its parts are summed, and the smallest parts are checked value by value.
    """
    if tensor.is_meta:
        return True
    values = tensor.detach().reshape(-1)
    if bool(values.sum().isfinite()):
        return True
    if len(values) <= SMALL:
        return bool(values.isfinite().all())
    return all(is_finite(part) for part in torch.tensor_split(values, PARTS))
