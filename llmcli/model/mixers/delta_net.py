"""Gated DeltaNet: a memory per head that forgets, and that is corrected where it predicts a value wrongly.

For each position with query q, key k, value v, decay a in (0, 1) and write strength b in (0, 1), the memory S, of shape
[D_k, D_v], becomes a S + k (b (v - a S^T k))^T, and the output is S^T q. Source: Yang et al. 2024, Gated Delta
Networks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.model.cache import KeyValueStore, state_before
from llmcli.model.config import ModelConfig
from llmcli.model.layers import Linear, Norm
from llmcli.model.mixers.chunks import FEW, chunked, decays
from llmcli.model.mixers.config import DeltaNetConfig
from llmcli.model.mixers.convolution import causal_convolution

EPS = 1e-6  # under the root of the norm of queries and keys


class GatedDeltaNet(nn.Module):
    """The mixer; its state is the end of the convolution's input and every head's memory.

    ``inputs`` computes, in this order, queries, keys, values, the output's gate, write strengths and decays.
    """

    def __init__(self, config: ModelConfig, sizes: DeltaNetConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.sizes = layer, sizes
        self.inputs = Linear(config.hidden_size, sizes.convolved + sizes.values + 2 * sizes.value_heads, bias=False)
        self.kernel = nn.Parameter(torch.empty(sizes.convolved, sizes.kernel))
        self.decay = nn.Parameter(torch.empty(sizes.value_heads))  # the logarithm of its rate
        self.decay_bias = nn.Parameter(torch.empty(sizes.value_heads))
        self.norm = Norm(config, sizes.value_dim, offset=0.0)
        self.out = Linear(sizes.values, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cache: KeyValueStore | None) -> Tensor:
        sizes = self.sizes
        past, memory = state_before(cache, self.layer, sizes.state_shapes, x)
        parts = [sizes.convolved, sizes.values, sizes.value_heads, sizes.value_heads]
        convolved, gate, strength, decay = torch.split(self.inputs(x).float(), parts, dim=-1)
        convolved, past = causal_convolution(convolved, self.kernel, None, past)
        q, k, v = torch.split(F.silu(convolved), [sizes.keys, sizes.keys, sizes.values], dim=-1)
        log_decay = -self.decay.float().exp() * F.softplus(decay + self.decay_bias.float())  # [B, T, heads]
        out, memory = delta_rule(
            unit(self._heads(q, sizes.key_dim)) * sizes.key_dim**-0.5,
            unit(self._heads(k, sizes.key_dim)),
            self._heads(v, sizes.value_dim),
            log_decay.transpose(1, 2),
            strength.sigmoid().transpose(1, 2),
            memory,
        )
        if cache is not None:
            cache.keep_state(self.layer, (past, memory))
        normed = self.norm(out.transpose(1, 2)) * F.silu(gate).view(*gate.shape[:2], -1, sizes.value_dim)
        mixed: Tensor = self.out(normed.flatten(2))
        return mixed

    def _heads(self, x: Tensor, size: int) -> Tensor:
        """x [B, T, heads * size] as [B, value heads, T, size]."""
        heads = x.reshape(*x.shape[:2], -1, size).transpose(1, 2)
        return heads.repeat_interleave(self.sizes.value_heads // heads.shape[1], dim=1)


def unit(x: Tensor) -> Tensor:
    """x [..., D], scaled to length 1."""
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + EPS)


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """The outputs [B, H, T, D_v] of T positions, and the memory [B, H, D_k, D_v] after them, fp32.

    q and k are [B, H, T, D_k], v is [B, H, T, D_v]; ``log_decay`` and ``strength`` are [B, H, T].
    """
    if q.shape[2] <= FEW:
        return in_steps(q, k, v, log_decay, strength, memory)
    return in_chunks(q, k, v, log_decay, strength, memory)


def in_steps(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """``delta_rule``, one position after the other."""
    outs = []
    decay = log_decay.exp()
    for t in range(q.shape[2]):
        row, column = k[:, :, t : t + 1], k[:, :, t].unsqueeze(-1)  # [B, H, 1, D_k], [B, H, D_k, 1]
        memory = memory * decay[:, :, t, None, None]
        correction = (v[:, :, t : t + 1] - row @ memory) * strength[:, :, t, None, None]
        memory = torch.addcmul(memory, column, correction)
        outs.append(q[:, :, t : t + 1] @ memory)
    return torch.cat(outs, dim=2), memory


def in_chunks(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, strength: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """``delta_rule`` in chunks, each with a few matrix products (Yang et al. 2024, section 3.3).

    Within a chunk, the corrections u of all positions solve (1 + A) u = b (v - e^G k^T S), in which S is the memory
    before the chunk, G the sum of log decays since then, and A_ij = b_i e^(G_i - G_j) k_i k_j for j < i. Then the
    output is e^G q^T S plus, for all j <= i, e^(G_i - G_j) (q_i k_j) u_j.
    """
    T = q.shape[2]
    # Positions that are added have a strength of 0 and no decay, which change nothing.
    q, k, v, log_decay, strength = map(chunked, (q, k, v, log_decay, strength))
    total = log_decay.cumsum(-1)
    since = decays(total)
    written = k * strength.unsqueeze(-1)
    among = (written @ k.transpose(-1, -2) * since).tril(-1)
    from_start = total.exp().unsqueeze(-1)
    right = torch.cat((v * strength.unsqueeze(-1), written * from_start), dim=-1)
    solved = torch.linalg.solve_triangular(among, right, upper=False, unitriangular=True)
    values, keys = torch.split(solved, [v.shape[-1], k.shape[-1]], dim=-1)
    seen = q @ k.transpose(-1, -2) * since
    q = q * from_start
    kept = k * (total[..., -1:] - total).exp().unsqueeze(-1)
    outs = []
    for chunk in range(q.shape[2]):
        corrections = values[:, :, chunk] - keys[:, :, chunk] @ memory
        outs.append(q[:, :, chunk] @ memory + seen[:, :, chunk] @ corrections)
        memory = memory * from_start[:, :, chunk, -1:] + kept[:, :, chunk].transpose(-1, -2) @ corrections
    return torch.cat(outs, dim=2)[:, :, :T], memory
