"""Causal self-attention, over all earlier positions or over a window of them."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.model.cache import KeyValueStore, narrowed
from llmcli.model.config import AlibiConfig, ModelConfig
from llmcli.model.hooks import PassHooks
from llmcli.model.layers import Linear, Norm
from llmcli.model.positions import Placement, alibi_scores, causal_mask, rotate
from llmcli.model.trace import Trace, kept


class Projection(NamedTuple):
    """Queries [B, H, T, D], keys and values [B, K, T, D], and the gate of each head's output, [B, H, T, D] or None."""

    q: Tensor
    k: Tensor
    v: Tensor
    gate: Tensor | None


class Scoring(TypedDict):
    """Arguments of ``attend`` and ``attention_weights`` that are the same for all texts."""

    scale: float
    softcap: float | None
    sinks: Tensor | None
    alibi: AlibiConfig | None


class Attention(nn.Module):
    """Self-attention with grouped key/value heads (Ainslie et al. 2023); q, k and v share one matrix."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.kv_layer = layer, config.kv_layer(layer)
        self.heads, self.kv_heads = config.num_attention_heads, config.kv_heads(layer)
        self.projected = config.projected_heads(layer)
        self.head_dim = config.head_size(layer)
        self.scale = self.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.softcap, self.limit = config.attention_softcap, config.qkv_limit
        self.gated, self.out_scale = config.attention_gate, config.attention_out_scale
        computed = sum(self.projected) + (self.heads if self.gated else 0)
        self.qkv = Linear(config.hidden_size, computed * self.head_dim, bias=config.qkv_bias)
        self.out = Linear(self.heads * self.head_dim, config.hidden_size, bias=config.out_bias)
        self.q_norm = _qk_norm(config, self.heads, self.head_dim)
        self.k_norm = _qk_norm(config, self.kv_heads, self.head_dim) if self.kv_layer == layer else None
        unweighted = config.qk_norm == "unweighted" and layer not in config.layers_without_rope
        self.qk_norm_eps = config.norm_eps if unweighted else None
        self.value_norm_eps = config.norm_eps if config.value_norm else None
        self.norm_after_rope = config.qk_norm_after_rope
        self.sinks = nn.Parameter(torch.empty(self.heads)) if config.attention_sinks else None
        self.alibi = config.alibi

    def forward(
        self,
        x: Tensor,
        placement: Placement,
        cache: KeyValueStore | None,
        trace: Trace | None,
        hooks: PassHooks | None = None,
    ) -> Tensor:
        q, k, v, gate = self.project(x, placement)
        T = q.shape[2]
        S = T
        if cache is not None:
            S += cache.length
            if self.kv_layer == self.layer:
                k, v = cache.append(self.layer, k, v)  # [B, K, at most S, D]
            else:
                k, v = cache.appended(self.kv_layer, T)
            q = narrowed(q, k.dtype)
        if placement.window is not None and placement.window + T - 1 < k.shape[2]:  # keep only what a query sees
            k, v = k[:, :, 1 - placement.window - T :], v[:, :, 1 - placement.window - T :]
        if trace is not None:
            weights = attention_weights(q, k, placement.mask, trace.rows, **self.scoring)
            unseen = S - k.shape[2]  # positions before the window
            trace.attention[self.layer] = kept(F.pad(weights, (unseen, 0)))
            trace.values[self.layer] = kept(F.pad(v, (0, 0, unseen, 0)))
            if gate is not None:
                trace.gates[self.layer] = kept(gate if trace.rows is None else gate[:, :, trace.rows])
        y = self.attend(q, k, v, placement)  # [B, H, T, D]
        y = (y if gate is None else y * gate).transpose(1, 2)
        y = y if hooks is None else hooks("heads", self.layer, y)
        out: Tensor = self.out(y.reshape(*x.shape[:-1], -1))
        return out if self.out_scale == 1 else out * self.out_scale

    @property
    def scoring(self) -> Scoring:
        """How this layer turns products of queries and keys into weights."""
        return {"scale": self.scale, "softcap": self.softcap, "sinks": self.sinks, "alibi": self.alibi}

    def project(self, x: Tensor, placement: Placement) -> Projection:
        """The projections of x [B, T, C]; queries and keys are normalized and rotated.

        There are no keys and values if the layer reads those of another.
        """
        H, K, V = self.projected
        heads = self.split_heads(self.qkv(x)).float()
        gate = None
        if self.gated:
            gate = heads.narrow(1, H, H).sigmoid()
            heads = torch.cat((heads.narrow(1, 0, H), heads.narrow(1, 2 * H, K + V)), dim=1)
        qk, v = heads.narrow(1, 0, H + K), heads.narrow(1, H + V, K)  # with V = 0, the values are the keys
        if self.value_norm_eps is not None:
            v = F.rms_norm(v, (self.head_dim,), None, self.value_norm_eps)
        if not self.norm_after_rope:
            qk = self.normed(qk)
        if self.limit is not None:
            qk, v = qk.clamp(-self.limit, self.limit), v.clamp(-self.limit, self.limit)
        if placement.rotation is not None:
            qk = rotate(qk, *placement.rotation)
        if self.norm_after_rope:
            qk = self.normed(qk)
        q, k = qk.narrow(1, 0, H), qk.narrow(1, H, K)
        if placement.query_scale is not None:
            q = q * placement.query_scale
        return Projection(q, k, v, gate)

    def normed(self, qk: Tensor) -> Tensor:
        """Queries and keys [B, H + K, T, D], normalized if the model does that."""
        if self.qk_norm_eps is not None:
            return F.rms_norm(qk, (self.head_dim,), None, self.qk_norm_eps)
        if self.q_norm is None:
            return qk
        q, k = qk[:, : self.heads], qk[:, self.heads :]
        q = _normed(self.q_norm, q)
        return q if self.k_norm is None else torch.cat((q, _normed(self.k_norm, k)), dim=1)

    def split_heads(self, qkv: Tensor) -> Tensor:
        """The product with the matrix ``qkv``, [B, T, heads * D], as [B, heads, T, D]."""
        return qkv.view(*qkv.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, placement: Placement) -> Tensor:
        """``attend`` with this layer's scale, softcap, sinks and ALiBi."""
        return attend(q, k, v, placement, **self.scoring)


def _qk_norm(config: ModelConfig, heads: int, size: int) -> Norm | None:
    """The norm of ``heads`` query or key heads of ``size`` features, if the config has one."""
    if config.qk_norm in (None, "unweighted"):
        return None
    if config.qk_norm == "full":
        return Norm(config, heads * size)
    return Norm(config, size, heads=heads if config.qk_norm == "heads" else 1)


def _normed(norm: Norm, x: Tensor) -> Tensor:
    """x [B, heads, T, D], normalized per head, or over all heads together if the norm is that wide."""
    tokens = x.transpose(1, 2)
    normed: Tensor = norm(tokens if norm.size == x.shape[-1] else tokens.flatten(2))
    return normed.view_as(tokens).transpose(1, 2)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    placement: Placement,
    *,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None = None,
    alibi: AlibiConfig | None = None,
) -> Tensor:
    """softmax(scale q k^T) v for q [B, H, T, D] and k, v [B, K, S, D]; each query sees what ``placement`` allows."""
    mask = placement.mask
    usual = softcap is None and alibi is None
    if sinks is not None and usual:
        return attend_with_sinks(q, k, v, mask, sinks, scale)
    if not usual:  # no kernel of torch's bounds the scores, or adds to them in fp32
        weights = attention_weights(q, k, mask, None, scale=scale, softcap=softcap, sinks=sinks, alibi=alibi)
        return weights.to(v.dtype) @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    causal = mask is None and q.shape[2] > 1
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped)


SINK_FEATURES = 8  # added to each head: a multiple of 8, as fast kernels require


def attend_with_sinks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v, in which ``sinks`` [H] take part as the scores of one more key, whose value is 0.

    That key is 1 in two features that all other keys lack. There, queries have the sink's score: what their dtype can
    express, and the rest.
    """
    T, S, D = q.shape[2], k.shape[2], q.shape[3]
    if mask is None and T > 1:
        mask = causal_mask(S - T, T, q.device)
    score = sinks.float() / scale
    high = score.to(q.dtype)
    features = F.pad(torch.stack((high, (score - high.float()).to(q.dtype)), dim=-1), (0, SINK_FEATURES - 2))
    q = torch.cat((q, features[:, None].expand(len(q), -1, T, -1)), dim=-1)
    k, v = (F.pad(x, (0, SINK_FEATURES, 1, 0)) for x in (k, v))
    k[:, :, 0, D : D + 2] = 1
    mask = None if mask is None else F.pad(mask, (1, 0), value=True)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=grouped)[..., :D]


def attention_weights(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    rows: slice | None,
    *,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None = None,
    alibi: AlibiConfig | None = None,
) -> Tensor:
    """The attention weights of the query ``rows``, in fp32: [B, H, rows, keys].

    ``softcap`` c bounds each score x to c tanh(x / c) (Gemma 2). With ``sinks`` [H], the weights of a row sum to less
    than 1: the rest is the sink's. With ``alibi``, the keys are those of positions 0 .. S-1.
    """
    T, S = q.shape[2], k.shape[2]
    if mask is None:
        mask = causal_mask(S - T, T, q.device)
    if rows is not None:
        q, mask = q[:, :, rows], mask[rows]
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q.float() @ k.float().transpose(-2, -1) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if alibi is not None:
        scores = scores + alibi_scores(alibi, S, q.device).unsqueeze(1)
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is None:
        return scores.softmax(dim=-1)
    sunk = sinks.float()[:, None, None].expand(*scores.shape[:-1], 1)
    weights: Tensor = torch.cat((scores, sunk), dim=-1).softmax(dim=-1)[..., :-1]
    return weights
