"""The decoder-only transformer, token ids in and logits out: one small module for every family.

The model holds no state between calls: what was read before lives in the caller's ``KVCache``.
Shapes: B batch, T positions of this call, S positions to attend to, H query heads, K key/value heads,
D features a head, C hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.errors import LlmcliError
from llmcli.model.cache import KVCache
from llmcli.model.config import ModelConfig
from llmcli.model.rope import inverse_frequencies, rotate, rotation
from llmcli.model.trace import Trace, keep


class Linear(nn.Linear):
    """torch's, left uninitialised: values come from a checkpoint or from training, and random ones take a second."""

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """Likewise."""

    def reset_parameters(self) -> None:
        pass


class Norm(nn.Module):
    """RMSNorm (Zhang & Sennrich 2019), or LayerNorm with bias where the config says so."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.empty(config.hidden_size))
        self.bias = nn.Parameter(torch.empty(config.hidden_size)) if config.norm == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Attention(nn.Module):
    """Causal self-attention with grouped key/value heads (Ainslie et al. 2023); q, k and v in one matrix."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.qkv = Linear(config.hidden_size, config.q_size + 2 * config.kv_size, bias=config.qkv_bias)
        self.out = Linear(config.q_size, config.hidden_size, bias=config.out_bias)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: KVCache | None,
        trace: Trace | None,
    ) -> Tensor:
        B, T, _ = x.shape
        H, K, D = self.heads, self.kv_heads, self.head_dim
        qkv = self.qkv(x).view(B, T, H + 2 * K, D)
        qk, v = qkv.split((H + K, K), dim=2)
        if rope is not None:
            qk = rotate(qk, *rope)
        q, k = qk.transpose(1, 2).split((H, K), dim=1)  # [B, H, T, D], [B, K, T, D]
        v = v.transpose(1, 2)  # [B, K, T, D]
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # [B, K, S, D]
        if trace is not None:
            keep(trace.attention, attention_weights(q, k, mask, trace.rows))
        y = attend(q, k, v, mask)  # [B, H, T, D]
        out: Tensor = self.out(y.transpose(1, 2).reshape(B, T, H * D))
        return out


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, each query seeing its own position and all before it: [B, H, T, D].

    ``mask`` [T, S] is True where a query may look; None means that T = S (plain causal) or T = 1.
    """
    B, H, T, D = q.shape
    K = k.shape[1]
    if T == 1:
        # One query sees every key, so the heads of a group can stand along the query axis: no mask,
        # no repeated keys, and a kernel several times faster than the grouped one.
        return F.scaled_dot_product_attention(q.reshape(B, K, H // K, D), k, v).reshape(B, H, 1, D)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=H != K)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, rows: slice | None) -> Tensor:
    """What ``attend`` weighs the values with, for the query ``rows``, in fp32: [B, H, rows, S]."""
    T, S = q.shape[2], k.shape[2]
    if mask is None:
        mask = causal_mask(S - T, T, q.device)
    if rows is not None:
        q, mask = q[:, :, rows], mask[rows]
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q.float() @ k.float().transpose(-2, -1) / q.shape[-1] ** 0.5
    weights: Tensor = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return weights


def causal_mask(past: int, count: int, device: torch.device) -> Tensor:
    """True where query past+i may see key j, that is j <= past+i: [count, past+count]."""
    return torch.ones(count, past + count, dtype=torch.bool, device=device).tril(past)


class MLP(nn.Module):
    """The feed-forward layer: down(act(gate x) * up x), gate and up in one matrix; or ungated down(act(up x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gated = config.gated_mlp
        self.activation = config.activation
        wide = config.intermediate_size * (2 if self.gated else 1)
        self.up = Linear(config.hidden_size, wide, bias=config.mlp_bias)
        self.down = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        wide: Tensor = self.up(x)
        if self.gated:
            gate, up = wide.chunk(2, dim=-1)
            wide = activate(gate, self.activation) * up
        else:
            wide = activate(wide, self.activation)
        out: Tensor = self.down(wide)
        return out


def activate(x: Tensor, name: str) -> Tensor:
    """The config's non-linearity."""
    if name == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


class Block(nn.Module):
    """One layer: attention, then the MLP, each reading a normed copy of the residual and adding to it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attn_norm = Norm(config)
        self.attn = Attention(config, layer)
        self.mlp_norm = Norm(config)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: KVCache | None,
        trace: Trace | None,
    ) -> Tensor:
        if trace is not None:
            keep(trace.residual, x)
        attn_out: Tensor = self.attn(self.attn_norm(x), rope, mask, cache, trace)
        x = x + attn_out
        mlp_out: Tensor = self.mlp(self.mlp_norm(x))
        if trace is not None:
            keep(trace.attn_out, attn_out)
            keep(trace.mlp_out, mlp_out)
        return x + mlp_out


class Transformer(nn.Module):
    """Embedding, blocks, final norm and head. Parameters come from ``checkpoint.load`` or from training."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.hidden_size)
        self.positions = (
            Embedding(config.max_position_embeddings, config.hidden_size) if config.position == "learned" else None
        )
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = Norm(config)
        self.head = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size, bias=False)
        # No buffer: derived from the config, it must stay fp32 under .to(dtype) and real on a meta model.
        self._frequencies = None if config.rope is None else inverse_frequencies(config.rope, config.head_dim)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    def new_cache(self, batch: int = 1) -> KVCache:
        """An empty cache of this model's shape, device and dtype."""
        return KVCache(self.config, device=self.device, dtype=self.dtype, batch=batch)

    def forward(self, ids: Tensor, cache: KVCache | None = None, trace: Trace | None = None) -> Tensor:
        """Logits [B, T, V] for token ids [B, T] that follow what ``cache`` holds (and are added to it)."""
        return self.unembed(self.hidden(ids, cache, trace))

    def hidden(self, ids: Tensor, cache: KVCache | None = None, trace: Trace | None = None) -> Tensor:
        """The residual stream after the last block, [B, T, C]: ``unembed`` only the positions you need."""
        T = ids.shape[1]
        past = 0 if cache is None else cache.length
        x: Tensor = self.embedding(ids)
        if self.positions is not None:
            if past + T > self.config.max_position_embeddings:
                raise LlmcliError(
                    f"{past + T} tokens do not fit the model's context of {self.config.max_position_embeddings}",
                    "use fewer",
                )
            x = x + self.positions.weight[past : past + T]
        rope = None if self._frequencies is None else rotation(self._frequencies.to(x.device), past, T, x.dtype)
        mask = causal_mask(past, T, x.device) if past and T > 1 else None
        for block in self.blocks:
            x = block(x, rope, mask, cache, trace)
        if cache is not None:
            cache.advance(T)
        if trace is not None:
            keep(trace.residual, x)
        return x

    def unembed(self, x: Tensor) -> Tensor:
        """Final norm and head: [..., C] -> logits [..., V]. Shared by generation and every view of a layer."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(self.norm(x), weight)
