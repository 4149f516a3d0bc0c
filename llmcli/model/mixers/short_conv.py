"""Gated short convolution: each feature sees its last few positions, gated before and after (Liquid AI 2025, LFM2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmcli.model.cache import KeyValueStore, state_before
from llmcli.model.config import ModelConfig
from llmcli.model.layers import Linear
from llmcli.model.mixers.config import ShortConvConfig
from llmcli.model.mixers.convolution import causal_convolution


class ShortConv(nn.Module):
    """out(c * convolution(b * v)), where ``inputs`` computes b, c and v; its state is the end of b * v."""

    def __init__(self, config: ModelConfig, sizes: ShortConvConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.sizes = layer, sizes
        self.inputs = Linear(config.hidden_size, 3 * sizes.width, bias=sizes.bias)
        self.kernel = nn.Parameter(torch.empty(sizes.width, sizes.kernel))
        self.kernel_bias = nn.Parameter(torch.empty(sizes.width)) if sizes.bias else None
        self.out = Linear(sizes.width, config.hidden_size, bias=sizes.bias)

    def forward(self, x: Tensor, cache: KeyValueStore | None) -> Tensor:
        (past,) = state_before(cache, self.layer, self.sizes.state_shapes, x)
        before, after, v = self.inputs(x).float().chunk(3, dim=-1)
        convolved, past = causal_convolution(before * v, self.kernel, self.kernel_bias, past)
        if cache is not None:
            cache.keep_state(self.layer, (past,))
        out: Tensor = self.out(after * convolved)
        return out
