"""Multi-head latent attention: keys and values of all heads come from one short vector per position.

Each position has a latent vector c and a rotated key r that all heads share. A head's key is its part of a matrix times
c, followed by r; its value is another part of that matrix times c. Only c and r are cached. Source: DeepSeek-AI 2024,
DeepSeek-V2, section 2.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmcli.model.attention import Projection, Scoring, attend, attention_weights
from llmcli.model.cache import KeyValueStore, narrowed
from llmcli.model.config import LatentConfig, ModelConfig
from llmcli.model.hooks import PassHooks
from llmcli.model.layers import Linear, Norm
from llmcli.model.positions import Placement, rotate
from llmcli.model.trace import Trace, kept


class LatentAttention(nn.Module):
    """The attention; it computes as many keys and values as there are query heads.

    ``latent`` computes c, before its norm, and r; ``kv`` every head's key and value from c.
    """

    alibi, sinks, softcap, out_scale = None, None, None, 1.0

    def __init__(self, config: ModelConfig, sizes: LatentConfig, layer: int) -> None:
        super().__init__()
        assert config.attention_scale is not None
        self.layer = self.kv_layer = layer  # each layer reads its own latents
        self.sizes, self.scale = sizes, config.attention_scale
        self.heads = self.kv_heads = config.num_attention_heads
        self.rotated = config.head_dim
        hidden, rank = config.hidden_size, sizes.query_rank
        self.query_latent = None if rank is None else Linear(hidden, rank, bias=sizes.bias)
        self.query_norm = None if rank is None else Norm(config, rank, eps=sizes.norm_eps)
        self.q = Linear(hidden if rank is None else rank, self.heads * (sizes.plain_dim + self.rotated), bias=False)
        self.latent = Linear(hidden, sizes.rank + self.rotated, bias=sizes.bias)
        self.latent_norm = Norm(config, sizes.rank, eps=sizes.norm_eps)
        self.kv = Linear(sizes.rank, self.heads * (sizes.plain_dim + sizes.value_dim), bias=False)
        self.out = Linear(self.heads * sizes.value_dim, hidden, bias=config.out_bias)

    def forward(
        self,
        x: Tensor,
        placement: Placement,
        cache: KeyValueStore | None,
        trace: Trace | None,
        hooks: PassHooks | None = None,
    ) -> Tensor:
        q, held = self.queries(x, placement), self.latents(x, placement)
        if cache is not None:
            held, _ = cache.append(self.layer, held, held[..., :0])  # [B, 1, S, rank + R]
        if trace is not None:
            k, v = self.expanded(held)
            weights = attention_weights(narrowed(q, k.dtype), k, placement.mask, trace.rows, **self.scoring)
            trace.attention[self.layer], trace.values[self.layer] = kept(weights), kept(v)
        y = self.mixed(q, held, placement).transpose(1, 2)  # [B, T, H, V]
        y = y if hooks is None else hooks("heads", self.layer, y)
        out: Tensor = self.out(y.flatten(2))
        return out

    @property
    def scoring(self) -> Scoring:
        """How this layer turns products of queries and keys into weights."""
        return {"scale": self.scale, "softcap": self.softcap, "sinks": self.sinks, "alibi": self.alibi}

    def queries(self, x: Tensor, placement: Placement) -> Tensor:
        """The queries of x [B, T, C], [B, H, T, D]: the plain features, then the rotated ones."""
        if self.query_latent is not None and self.query_norm is not None:
            x = self.query_norm(self.query_latent(x))
        return self._rotate_end(self._heads(self.q(x)), placement)

    def latents(self, x: Tensor, placement: Placement) -> Tensor:
        """What is cached of x [B, T, C], [B, 1, T, rank + R]: normalized latents, then rotated keys."""
        latent, key = torch.split(self.latent(x).float(), [self.sizes.rank, self.rotated], dim=-1)
        return self._rotate_end(torch.cat((self.latent_norm(latent), key), dim=-1).unsqueeze(1), placement)

    def expanded(self, held: Tensor) -> tuple[Tensor, Tensor]:
        """Every head's keys [B, H, S, D] and values [B, H, S, V], from what is cached, in its dtype."""
        latent, key = torch.split(held, [self.sizes.rank, self.rotated], dim=-1)
        heads = narrowed(self._heads(self.kv(latent.squeeze(1))), held.dtype)
        plain, v = torch.split(heads, [self.sizes.plain_dim, self.sizes.value_dim], dim=-1)
        return torch.cat((plain, key.expand(-1, self.heads, -1, -1)), dim=-1), v

    def mixed(self, q: Tensor, held: Tensor, placement: Placement) -> Tensor:
        """The heads' outputs [B, H, T, V] for queries [B, H, T, D], from what is cached of S positions."""
        k, v = self.expanded(held)
        return self.attend(narrowed(q, k.dtype), k, v, placement)

    def project(self, x: Tensor, placement: Placement) -> Projection:
        """The queries, keys and values of x [B, T, C] for every head, as ``Attention.project`` returns them."""
        return Projection(self.queries(x, placement), *self.expanded(self.latents(x, placement)), None)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, placement: Placement) -> Tensor:
        """``attend`` with this layer's scale."""
        return attend(q, k, v, placement, **self.scoring)

    def _heads(self, x: Tensor) -> Tensor:
        """x [B, T, heads * size] as [B, heads, T, size], fp32."""
        return x.float().view(*x.shape[:-1], self.heads, -1).transpose(1, 2)

    def _rotate_end(self, x: Tensor, placement: Placement) -> Tensor:
        """x [B, heads, T, D], its last features rotated."""
        plain, end = torch.split(x, [x.shape[-1] - self.rotated, self.rotated], dim=-1)
        return x if placement.rotation is None else torch.cat((plain, rotate(end, *placement.rotation)), dim=-1)
