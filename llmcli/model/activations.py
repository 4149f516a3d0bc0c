"""The activations of MLPs and mixers, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal[
    "silu",
    "gelu",
    "gelu_tanh",
    "gelu_sigmoid",
    "relu",
    "relu_squared",
    "relu6",
    "leaky_relu",
    "hardswish",
    "mish",
    "sigmoid",
    "tanh",
    "linear",
    "xielu",
]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu_sigmoid": lambda x: x * torch.sigmoid(1.702 * x),  # Hendrycks & Gimpel 2016, section 2
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).square(),  # So et al. 2021, Primer
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "hardswish": F.hardswish,
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "linear": lambda x: x,
}

XIELU_SLOPE = 0.5  # at 0


def xielu(x: Tensor, curve: Tensor) -> Tensor:
    """The activation xIELU (Huang & Schlag 2024), whose two curvatures are learned; ``curve`` [2] gives them."""
    above, below = curvatures(curve)
    near_zero = -1e-6
    negative = (torch.expm1(x.clamp(max=near_zero)) - x) * below
    return torch.where(x > 0, above * x * x, negative) + XIELU_SLOPE * x


def curvatures(curve: Tensor) -> Tensor:
    """What xIELU multiplies its curved part by, above 0 and below: [2]."""
    above, below = F.softplus(curve.float())
    return torch.stack((above, XIELU_SLOPE + below))
