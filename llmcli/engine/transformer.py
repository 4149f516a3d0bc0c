"""The transformer that commands run: the reference's modules with attention kernels that are fast for long prompts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmcli.engine.attention import attend
from llmcli.engine.exact import exact_products, few
from llmcli.engine.native import NativeProducts, NativeStep, native_products, native_step, variant
from llmcli.model.attention import Attention
from llmcli.model.cache import KVCache, narrowed
from llmcli.model.config import ModelConfig
from llmcli.model.latent_attention import LatentAttention
from llmcli.model.positions import Placement
from llmcli.model.trace import Trace
from llmcli.model.transformer import Transformer

GPU_CACHE_BLOCK = 256  # positions by which a GPU's cache grows; each time, the CUDA graph of a step is recorded again
FEW_QUERIES = 16  # up to so many, latent attention does not compute keys and values of all positions


class FastAttention(Attention):
    """``Attention`` with the kernels of ``engine.attention``."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, placement: Placement) -> Tensor:
        return attend(q, k, v, placement, **self.scoring)


class FastLatentAttention(LatentAttention):
    """``LatentAttention`` with the kernels of ``engine.attention``, which seldom computes the heads' keys and values.

    A head's score is q (K c), with its part K of the matrix ``kv``, or (K^T q) c: few queries multiply with the cached
    latents directly. Their heads' outputs are sums of latents, which are multiplied with the values' part only then.
    """

    def mixed(self, q: Tensor, held: Tensor, placement: Placement) -> Tensor:
        if q.shape[2] > FEW_QUERIES or torch.is_grad_enabled():
            return super().mixed(q, held, placement)
        sizes = self.sizes
        matrix = self.kv.dense(slice(None)).view(self.heads, -1, sizes.rank)  # [H, plain + V, rank]
        keys, values = torch.split(matrix, [sizes.plain_dim, sizes.value_dim], dim=1)
        plain, rotated = torch.split(q, [sizes.plain_dim, self.rotated], dim=-1)
        q = torch.cat((plain @ keys, rotated), dim=-1)
        y = self.attend(narrowed(q, held.dtype), held, held[..., : sizes.rank], placement)  # [B, H, T, rank]
        return y.float() @ values.transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, placement: Placement) -> Tensor:
        return attend(q, k, v, placement, **self.scoring)


class EngineTransformer(Transformer):
    """``Transformer`` with ``FastAttention`` or its like: the same parameters, and the same logits up to rounding."""

    complete = True  # whether the whole model is in this process, unlike in ``tensor_parallel``

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self._native: NativeStep | None = None
        self._products: NativeProducts | None = None
        for block in self.blocks:
            if block.attn is not None:
                block.attn.__class__ = FastAttention if config.latent is None else FastLatentAttention

    def _apply(self, *args: Any, **kwargs: Any) -> EngineTransformer:
        self._native = self._products = None  # they point to parameters that are about to move
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    @property
    def native(self) -> NativeStep | None:
        """The compiled engine of this model, made when first used; None where torch runs every step.

        It has no hooks.

        It copies small parameters, such as norms: after a change in place, ``model.to(model.device)`` makes a new one.
        """
        if self.hooks is not None:
            return None
        if self._native is None and self.complete:
            self._native = native_step(self)
        return self._native

    @property
    def products(self) -> NativeProducts | None:
        """The compiled engine's products, made when first used, if it does not compute this model's steps."""
        if self._products is None and self.complete and self.native is None:
            self._products = native_products(self)
        return self._products

    def hidden(self, ids: Tensor, cache: KVCache | None = None, trace: Trace | None = None) -> Tensor:
        if torch.is_grad_enabled() or self.dtype == torch.float32 or self.device.type != "cpu":
            return super().hidden(ids, cache, trace)
        # Products of bfloat16 are faster on some processors, but change probabilities by several percent.
        with exact_products(self, self.products):
            return super().hidden(ids, cache, trace)

    def unembed(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().unembed(x)
        if self.products is not None and few(x):
            head = self.embedding if self.head is None else self.head
            return self.bounded(self.products.product(head, self.norm(x)))
        if self.native is None:
            return super().unembed(x)
        return self.native.unembed(x.reshape(-1, x.shape[-1]).float()).view(*x.shape[:-1], -1)

    def new_cache(self, batch: int = 1) -> KVCache:
        block = GPU_CACHE_BLOCK if self.device.type == "cuda" else 1
        dtype = cache_dtype(self.dtype, self.device)
        return KVCache(self.config, device=self.device, dtype=dtype, batch=batch, block=block)


def engine_of(model: Transformer) -> str:
    """What decodes ``model``, in words: "native engine (avx512), threads: 2", or torch and why."""
    if not isinstance(model, EngineTransformer) or not model.complete:
        return "torch (each process has a part of the model)"
    if model.native is not None:
        return f"native engine ({variant()}), threads: {torch.get_num_threads()}"
    if model.device.type != "cpu":
        return f"torch on {model.device.type}"
    if model.products is not None:
        return f"torch, with products of the native engine ({variant()}), threads: {torch.get_num_threads()}"
    reason = f"does not run this model in {model.dtype_name}" if variant() else "was not built"
    return f"torch (the native engine {reason})"


def cache_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of keys and values for a model in ``dtype``: on a CPU float16, eight times as fine as bfloat16."""
    return torch.float16 if dtype == torch.bfloat16 and device.type == "cpu" else dtype
