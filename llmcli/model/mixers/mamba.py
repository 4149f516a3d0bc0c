"""Mamba-2: a state per head that forgets at a rate which the input chooses, and adds what the input writes.

For each position with input x [P], step size d > 0, write direction B [N] and read direction C [N], the state S [P, N]
becomes e^(-d r) S + d x B^T, with a learned rate r, and the output is S C + D x. Source: Dao & Gu 2024, Transformers
are SSMs, sections 6 and 7.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.model.activations import ACTIVATIONS
from llmcli.model.cache import KeyValueStore, state_before
from llmcli.model.config import ModelConfig
from llmcli.model.layers import Linear, Norm
from llmcli.model.mixers.chunks import CHUNK, FEW, chunked, decays
from llmcli.model.mixers.config import MambaConfig
from llmcli.model.mixers.convolution import causal_convolution


class Mamba2(nn.Module):
    """The mixer; its state is the end of the convolution's input and every head's state.

    ``inputs`` computes, in this order, the output's gate, x, B, C and step sizes.
    """

    def __init__(self, config: ModelConfig, sizes: MambaConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.sizes = layer, sizes
        self.inputs = Linear(config.hidden_size, sizes.width + sizes.convolved + sizes.heads, bias=sizes.bias)
        self.kernel = nn.Parameter(torch.empty(sizes.convolved, sizes.kernel))
        self.kernel_bias = nn.Parameter(torch.empty(sizes.convolved)) if sizes.kernel_bias else None
        self.decay = nn.Parameter(torch.empty(sizes.heads))  # the logarithm of its rate
        self.step_bias = nn.Parameter(torch.empty(sizes.heads))
        self.skip = nn.Parameter(torch.empty(sizes.heads))
        group = sizes.width // sizes.groups
        self.norm = Norm(config, group, heads=sizes.groups, offset=0.0) if sizes.norm else None
        self.out = Linear(sizes.width, config.hidden_size, bias=sizes.bias)

    def forward(self, x: Tensor, cache: KeyValueStore | None) -> Tensor:
        sizes = self.sizes
        past, state = state_before(cache, self.layer, sizes.state_shapes, x)
        parts = [sizes.width, sizes.convolved, sizes.heads]
        gate, convolved, step = torch.split(self._scaled(self.inputs(x).float()), parts, dim=-1)
        convolved, past = causal_convolution(convolved, self.kernel, self.kernel_bias, past)
        shared = sizes.groups * sizes.state_size
        v, write, read = torch.split(ACTIVATIONS[sizes.activation](convolved), [sizes.width, shared, shared], dim=-1)
        step = F.softplus(step + self.step_bias.float()).clamp(*sizes.step_limits).transpose(1, 2)  # [B, H, T]
        log_decay = -self.decay.float().exp().unsqueeze(-1) * step
        v = v.view(*v.shape[:2], sizes.heads, -1).transpose(1, 2)  # [B, H, T, P]
        out, state = scan(self._groups(read), self._groups(write), v * step.unsqueeze(-1), log_decay, state)
        if cache is not None:
            cache.keep_state(self.layer, (past, state))
        out = (out + v * self.skip.float()[:, None, None]).transpose(1, 2).flatten(2)
        mixed: Tensor = self.out(self._gated(out, F.silu(gate)))
        return mixed if sizes.out_scale == 1 else mixed * sizes.out_scale

    def _scaled(self, inputs: Tensor) -> Tensor:
        """``inputs`` with each part multiplied by its scale."""
        sizes = self.sizes
        if not sizes.part_scales:
            return inputs
        shared = sizes.groups * sizes.state_size
        parts = torch.split(inputs, [sizes.width, sizes.width, shared, shared, sizes.heads], dim=-1)
        return torch.cat([part * scale for part, scale in zip(parts, sizes.part_scales, strict=True)], dim=-1)

    def _gated(self, out: Tensor, gate: Tensor) -> Tensor:
        """The heads' outputs times the gate, both [B, T, heads * P], normalized before or after."""
        if self.norm is None:
            return out * gate
        return self._normed(out * gate) if self.sizes.norm == "after gate" else self._normed(out) * gate

    def _groups(self, x: Tensor) -> Tensor:
        """x [B, T, groups * N] by group, [B, groups, T, N]."""
        return x.view(*x.shape[:2], self.sizes.groups, -1).transpose(1, 2)

    def _normed(self, x: Tensor) -> Tensor:
        assert self.norm is not None
        groups = self.sizes.groups
        normed: Tensor = self.norm(x.view(*x.shape[:2], groups, -1) if groups > 1 else x)
        return normed.view_as(x)


def scan(read: Tensor, write: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs S C [B, H, T, P] of T positions, and the state [B, H, P, N] after them, fp32.

    ``read`` and ``write`` are C and B, [B, G, T, N], v [B, H, T, P] is what is written, ``log_decay`` is [B, H, T].
    Each of the G groups serves H / G consecutive heads.
    """
    if v.shape[2] <= FEW:
        return in_steps(read, write, v, log_decay, state)
    return in_chunks(read, write, v, log_decay, state)


def in_steps(read: Tensor, write: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """``scan``, one position after the other."""
    outs = []
    read, write = (x.repeat_interleave(v.shape[1] // x.shape[1], dim=1) for x in (read, write))
    decay = log_decay.exp()
    for t in range(v.shape[2]):
        state = torch.addcmul(
            state * decay[:, :, t, None, None], v[:, :, t].unsqueeze(-1), write[:, :, t].unsqueeze(-2)
        )
        outs.append(state @ read[:, :, t].unsqueeze(-1))
    return torch.cat(outs, dim=-1).transpose(-1, -2), state


def in_chunks(read: Tensor, write: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """``scan`` in chunks, each with a few matrix products (Dao & Gu 2024, section 6).

    With G the sum of log decays since the start of the chunk and S the state before it, the output at i is
    e^(G_i) S C_i plus, for all j <= i, e^(G_i - G_j) (B_j C_i) v_j.
    """
    B, H, T, P = v.shape
    # Positions that are added write nothing and do not decay.
    read, write, v, log_decay = map(chunked, (read, write, v, log_decay))
    groups, chunks = read.shape[1:3]
    total = log_decay.cumsum(-1)
    matches = (read @ write.transpose(-1, -2)).unsqueeze(2) * decays(total).view(B, groups, -1, chunks, CHUNK, CHUNK)
    within = matches.flatten(1, 2) @ v
    from_start = total.exp().unsqueeze(-1)
    kept = v * (total[..., -1:] - total).exp().unsqueeze(-1)
    # A group's heads form one matrix of H / G * P rows.
    rows = kept.transpose(-1, -2).view(B, groups, -1, chunks, P, CHUNK).transpose(2, 3).flatten(3, 4)
    added = (rows @ write).view(B, groups, chunks, -1, P, write.shape[-1])  # [B, G, chunks, H / G, P, N]
    before = []  # [B, H, P, N] for each chunk
    for chunk in range(chunks):
        before.append(state)
        state = torch.addcmul(added[:, :, chunk].flatten(1, 2), state, from_start[:, :, chunk, -1:])
    rows = torch.stack(before, dim=1).view(B, chunks, groups, H // groups * P, -1).transpose(1, 2)
    across = (read @ rows.transpose(-1, -2)).view(B, groups, chunks, CHUNK, -1, P)  # [B, G, chunks, CHUNK, H / G, P]
    across = across.permute(0, 1, 4, 2, 3, 5).flatten(1, 2)
    out = torch.addcmul(within, across, from_start)
    return out.flatten(2, 3)[:, :, :T], state
