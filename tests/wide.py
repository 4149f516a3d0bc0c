"""Random models of every family, wide enough for groups of 4-bit weights, and their dequantized counterparts."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import torch
from torch import Tensor, nn

from llmcli.model.families import family_of
from llmcli.model.layers import Embedding, Linear
from llmcli.model.transformer import Transformer
from tests.tiny import CONFIGS

GROUP = 32
FEW = 64  # with more tokens than this, 4-bit matrices quantize activations too
WIDE = {"hidden_size": 96, "n_embd": 96, "intermediate_size": 64, "moe_intermediate_size": 32}
ROUTERS_AND_POSITIONS = ("router", "positions")


def raw_config(name: str) -> dict[str, Any]:
    """The config.json of a case in ``tiny.CONFIGS``, with most sizes multiples of 32."""
    raw: dict[str, Any] = json.loads(CONFIGS[name].to_json_string(use_diff=False))
    return raw | {key: size for key, size in WIDE.items() if key in raw}


def wide_model(raw: dict[str, Any], *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Transformer:
    """A model with random parameters, scaled so that no layer dominates the others."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(family_of(raw).parse(raw)).requires_grad_(False)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:
            parameter.copy_(noise / math.sqrt(parameter.shape[1]))
        elif name.endswith("bias"):
            parameter.copy_(0.15 * noise)
        else:
            parameter.copy_(1.0 - model.config.norm_offset + 0.3 * noise)
    return model.to(dtype).eval()


def dequantized(weight: Tensor, kind: str) -> tuple[Tensor, bool]:
    """A weight after quantization, fp64, computed independently of llmcli; and whether it has 4 bits.

    For 4 bits, every factor near the one that just spans a group is tried.
    """
    wide = weight.double()
    if kind == "int8" or wide.shape[1] % GROUP:
        scale = wide.abs().amax(1, keepdim=True) / 127
        return (wide / scale).round() * scale, False
    groups = wide.view(len(wide), -1, GROUP)
    unit = wide.abs().amax(1).view(-1, 1, 1) / 120
    peaks = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    found, least = torch.zeros_like(groups), torch.full_like(peaks, torch.inf)
    spanning = (peaks.abs() / unit / 8).round()
    for distance in (-3, -2, -1, 0, 1, 2):
        step = -peaks.sign() * (spanning + distance).clamp(1, 15) * unit
        values = (groups / step).round().clamp(-8, 7) * step
        error = (values - groups).square().sum(-1, keepdim=True)
        found, least = torch.where(error < least, values, found), torch.minimum(error, least)
    return found.view_as(wide), True


class Reference(nn.Module):
    """A matrix or table with dequantized weights, in floats; rounds activations where a quantized module does."""

    def __init__(self, module: Linear | Embedding, kind: str) -> None:
        super().__init__()
        table = isinstance(module, Embedding)
        weight, self.four = dequantized(module.weight, "int8" if table else kind)
        self.weight, self.bias = weight.to(module.weight.dtype), None if table else module.bias

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.int64:
            return self.weight[x]
        y = self.unembed(x)
        return y if self.bias is None else y + self.bias

    def unembed(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if not self.four or len(rows) > FEW:
            step = rows.abs().amax(-1, keepdim=True) / 127
            rows = (rows / step).round() * step
        return (rows @ self.weight.t()).view(*x.shape[:-1], -1)


def reference(model: Transformer, kind: str) -> Transformer:
    """A copy of the model that computes with dequantized weights."""
    other = copy.deepcopy(model)
    for name, module in list(other.named_modules()):
        if isinstance(module, (Linear, Embedding)) and name.rpartition(".")[2] not in ROUTERS_AND_POSITIONS:
            parent, _, last = name.rpartition(".")
            setattr(other.get_submodule(parent), last, Reference(module, kind))
    return other
