"""The transformer that commands run: the reference's modules with kernels that are fast for a single token on a CPU.

For a single vector, torch's batched kernels are mostly overhead. So while a CPU decodes one token, a plain vector [C]
passes through the blocks, and the modules here multiply and normalize it with kernels for single vectors.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.engine.attention import attend
from llmcli.model.attention import Attention
from llmcli.model.cache import KeyValueStore, KVCache
from llmcli.model.config import ModelConfig
from llmcli.model.layers import Embedding, Linear, Norm
from llmcli.model.positions import Placement, Placements
from llmcli.model.trace import Trace
from llmcli.model.transformer import Transformer

GPU_CACHE_BLOCK = 256  # positions by which a GPU's cache grows; each time, the CUDA graph of a step is recorded again

onednn: Any = torch.backends.mkldnn


def as_vector(x: Tensor) -> Tensor:
    """x [..., C] as a vector [C] if a single token is decoded on a CPU, otherwise unchanged.

    Unchanged under autocast too, which does not cast the kernels for single vectors.
    """
    single = x.numel() == x.shape[-1] and x.device.type == "cpu" and not torch.is_grad_enabled()
    return x.view(-1) if single and not torch.is_autocast_enabled("cpu") else x


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias, for x [..., in] or a single vector [in]."""
    if x.dim() > 1:
        return F.linear(x, weight, bias)
    # A matrix-vector product is bound by memory: torch's own kernel reads at full bandwidth, oneDNN's at half.
    before, onednn.enabled = onednn.enabled, False
    try:
        y = torch.mv(weight, x)
    finally:
        onednn.enabled = before
    return y if bias is None else y + bias


@lru_cache(maxsize=8)
def _zero(dtype: torch.dtype) -> Tensor:
    """A zero to add to, which addcmul needs."""
    return torch.zeros((), dtype=dtype)


class FastLinear(Linear):
    """``Linear``, fast for a single vector."""

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias)


class FastEmbedding(Embedding):
    """``Embedding`` whose ``unembed`` is fast for a single vector."""

    def unembed(self, x: Tensor) -> Tensor:
        return product(x, self.weight)


class FastNorm(Norm):
    """``Norm`` whose RMSNorm is fast for a single vector."""

    def forward(self, x: Tensor) -> Tensor:
        if self.rms and x.dim() == 1:
            return self._single(x)
        return super().forward(x)

    def _single(self, x: Tensor) -> Tensor:
        """RMSNorm of one vector [C], in a third of the time of torch's kernel."""
        length = float(torch.linalg.vector_norm(x, dtype=torch.float32))
        scale = (length * length / self.size + self.eps) ** -0.5
        if self.offset:
            return (x.float() * (self.weight.float() + self.offset)).mul_(scale).to(x.dtype)
        return torch.addcmul(_zero(x.dtype), x, self.weight, value=scale)


class FastAttention(Attention):
    """``Attention`` with the kernels of ``engine.attention``; also takes a single vector."""

    def split_heads(self, qkv: Tensor) -> Tensor:
        return qkv.view(1, -1, 1, self.head_dim) if qkv.dim() == 1 else super().split_heads(qkv)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, placement: Placement) -> Tensor:
        return attend(q, k, v, placement, scale=self.scale, softcap=self.softcap)


FAST: dict[type[nn.Module], type[nn.Module]] = {
    Linear: FastLinear,
    Embedding: FastEmbedding,
    Norm: FastNorm,
    Attention: FastAttention,
}


class EngineTransformer(Transformer):
    """``Transformer`` with the modules in ``FAST``: the same parameters, and the same logits up to rounding."""

    complete = True  # whether the whole model is in this process, unlike in ``tensor_parallel``

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        for module in self.modules():
            module.__class__ = FAST.get(type(module), type(module))

    def new_cache(self, batch: int = 1) -> KVCache:
        block = GPU_CACHE_BLOCK if self.device.type == "cuda" else 1
        return KVCache(self.config, device=self.device, dtype=self.dtype, batch=batch, block=block)

    def run_blocks(
        self, x: Tensor, placements: Placements, cache: KeyValueStore | None, trace: Trace | None = None
    ) -> Tensor:
        return super().run_blocks(as_vector(x), placements, cache, trace).view(x.shape)

    def unembed(self, x: Tensor) -> Tensor:
        return super().unembed(as_vector(x)).view(*x.shape[:-1], -1)
