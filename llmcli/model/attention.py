"""Causal self-attention, over everything before a position or over a window."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.engine.blockwise import attend_blockwise, suits
from llmcli.model.cache import Store
from llmcli.model.config import ModelConfig
from llmcli.model.layers import Linear, Norm
from llmcli.model.positions import rotate
from llmcli.model.trace import Trace, keep


@dataclass(frozen=True)
class Place:
    """What a layer must know of where its T positions stand.

    ``rope`` turns queries and keys (None: no rotation). ``window`` is how many positions a query sees,
    None all. ``mask`` [T, keys] is True where a query may look, over the last keys that any query of
    the pass can see; None means that T = keys (plain causal), or that T = 1 and all keys are seen.
    """

    rope: tuple[Tensor, Tensor] | None
    window: int | None
    mask: Tensor | None


class Attention(nn.Module):
    """Self-attention with grouped key/value heads (Ainslie et al. 2023); q, k and v in one matrix."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.softcap = config.attention_softcap
        self.qkv = Linear(config.hidden_size, config.q_size + 2 * config.kv_size, bias=config.qkv_bias)
        self.out = Linear(config.q_size, config.hidden_size, bias=config.out_bias)
        self.q_norm = _qk_norm(config, self.heads)
        self.k_norm = _qk_norm(config, self.kv_heads)

    def forward(self, x: Tensor, place: Place, cache: Store | None, trace: Trace | None) -> Tensor:
        q, k, v = self.project(x, place.rope)
        B, _, T, _ = q.shape
        S = T
        if cache is not None:
            S += cache.length
            k, v = cache.append(self.layer, k, v)  # [B, K, at most S, D]
        if place.window is not None and place.window + T - 1 < k.shape[2]:  # what no query of this pass can see
            k, v = k[:, :, 1 - place.window - T :], v[:, :, 1 - place.window - T :]
        if trace is not None:
            weights = attention_weights(q, k, place.mask, trace.rows, scale=self.scale, softcap=self.softcap)
            hidden = S - k.shape[2]  # positions before the window
            keep(trace.attention, F.pad(weights, (hidden, 0)))
            keep(trace.values, F.pad(v, (0, 0, hidden, 0)))
        y = attend(q, k, v, place, scale=self.scale, softcap=self.softcap)  # [B, H, T, D]
        y = y.view(-1) if x.dim() == 1 else y.transpose(1, 2).reshape(B, T, -1)
        out: Tensor = self.out(y)
        return out

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, D], keys and values [B, K, T, D] of x, normed and turned."""
        H, K, D = self.heads, self.kv_heads, self.head_dim
        qkv = self.qkv(x)
        heads = qkv.view(1, H + 2 * K, 1, D) if x.dim() == 1 else qkv.unflatten(-1, (H + 2 * K, D)).transpose(1, 2)
        qk, v = heads.narrow(1, 0, H + K), heads.narrow(1, H + K, K)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split((H, K), dim=1)
            qk = torch.cat((_normed(self.q_norm, q), _normed(self.k_norm, k)), dim=1)
        if rope is not None:
            qk = rotate(qk, *rope)
        return qk.narrow(1, 0, H), qk.narrow(1, H, K), v


def _qk_norm(config: ModelConfig, heads: int) -> Norm | None:
    if config.qk_norm is None:
        return None
    if config.qk_norm == "full":
        return Norm(config, heads * config.head_dim)
    return Norm(config, config.head_dim, heads=heads if config.qk_norm == "heads" else 1)


def _normed(norm: Norm, x: Tensor) -> Tensor:
    """x [B, heads, T, D], normed by head or, where the norm is as wide as all heads, together."""
    tokens = x.transpose(1, 2)
    normed: Tensor = norm(tokens if norm.size == x.shape[-1] else tokens.flatten(2))
    return normed.view_as(tokens).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, place: Place, *, scale: float, softcap: float | None) -> Tensor:
    """softmax(scale q k^T) v, each query seeing what ``place`` allows: [B, H, T, D]."""
    mask = place.mask
    if softcap is not None:  # no kernel of torch's bounds the scores
        weights = attention_weights(q, k, mask, None, scale=scale, softcap=softcap).to(v.dtype)
        return weights @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    B, H, T, D = q.shape
    K = k.shape[1]
    if T == 1 and H == K and mask is None and q.device.type == "cpu" and q.dtype != torch.float32:
        # torch's kernel for one bf16 query and one key head is four times slower than all of this.
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=scale).to(q.dtype)
    if T == 1 and B > 1 and mask is not None and q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return attend_rows(q, k, v, mask, scale)
    if T == 1:
        # The heads of a group see the same keys, so they can stand along the query axis: no repeated
        # keys, no mask where one query sees all, and a kernel several times faster than the grouped one.
        return F.scaled_dot_product_attention(q.reshape(B, K, H // K, D), k, v, mask, scale=scale).reshape(B, H, 1, D)
    if suits(q, k):
        return attend_blockwise(q, k, v, place.window, scale)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=H != K
    )


def attend_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """``attend`` for one query a text, of many texts that a mask [B, 1, 1, S] of 0 and -inf tells apart: [B, H, 1, D].

    Two products and a softmax, which take a quarter of the time of torch's kernel; scores are rounded to bfloat16.
    """
    B, H, _, D = q.shape
    K, S = k.shape[1:3]
    keys, values = k.reshape(B * K, S, D), v.reshape(B * K, S, D)
    scores = torch.bmm(q.reshape(B * K, H // K, D), keys.transpose(1, 2)).view(B, K, H // K, S)
    weights = (scores.float() * scale + mask).softmax(dim=-1).to(q.dtype)
    return torch.bmm(weights.view(B * K, H // K, S), values).view(B, H, 1, D)


def attention_weights(
    q: Tensor, k: Tensor, mask: Tensor | None, rows: slice | None, *, scale: float, softcap: float | None
) -> Tensor:
    """What ``attend`` weighs the values with, for the query ``rows``, in fp32: [B, H, rows, keys]."""
    T, S = q.shape[2], k.shape[2]
    if mask is None:
        mask = causal_mask(S - T, T, q.device)
    if rows is not None:
        q, mask = q[:, :, rows], mask[rows]
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q.float() @ k.float().transpose(-2, -1) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights: Tensor = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return weights


def causal_mask(past: int, count: int, device: torch.device, window: int | None = None) -> Tensor:
    """True where query past+i may see key j: past+i-window < j <= past+i. [count, past+count]."""
    seen = torch.ones(count, past + count, dtype=torch.bool, device=device).tril(past)
    return seen if window is None else seen.triu(past - window + 1)
