"""The feed-forward layer of a block: one MLP for all tokens, or a few of many experts for each token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from llmcli.model.activations import ACTIVATIONS, xielu
from llmcli.model.config import ModelConfig, MoeConfig
from llmcli.model.layers import Linear, Norm


class MLP(nn.Module):
    """down(act(gate x) * up x), gate and up in one matrix (Shazeer 2020); or ungated down(act(up x)).

    ``curve`` are the parameters of an activation that has some. ``inside`` may change the activations [B, T, W].
    """

    def __init__(self, config: ModelConfig, wide: int) -> None:
        super().__init__()
        self.gated = config.gated_mlp
        self.activation = config.activation
        self.limit, self.offset = config.gate_limit, config.up_offset
        self.gate_scale, self.out_scale = config.gate_scale, config.mlp_out_scale
        self.up = Linear(config.hidden_size, 2 * wide if self.gated else wide, bias=config.mlp_bias)
        self.down = Linear(wide, config.hidden_size, bias=config.mlp_bias)
        self.curve = nn.Parameter(torch.empty(2)) if config.activation == "xielu" else None

    def forward(self, x: Tensor, inside: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        wide: Tensor = self.up(x)
        activate = ACTIVATIONS[self.activation] if self.curve is None else partial(xielu, curve=self.curve)
        if self.gated:
            gate, up = wide.chunk(2, dim=-1)
            gate = gate if self.gate_scale == 1 else gate * self.gate_scale
            if self.limit is not None:
                gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
            wide = activate(gate) * (up + self.offset if self.offset else up)
        else:
            wide = activate(wide)
        wide = wide if inside is None else inside(wide)
        out: Tensor = self.down(wide)
        return out if self.out_scale == 1 else out * self.out_scale


class MoE(nn.Module):
    """Mixture of experts: the router sends each token to its ``num_experts_per_tok`` best experts and weights them.

    The experts are separate modules, so that a token reads only the experts that it needs. A shared expert, if there is
    one, serves every token.
    """

    def __init__(self, config: ModelConfig, moe: MoeConfig) -> None:
        super().__init__()
        self.moe, self.per_token = moe, moe.num_experts_per_tok
        self.router_norm = Norm(config, config.hidden_size) if moe.router_norm else None
        self.router = Linear(config.hidden_size, moe.num_experts, bias=moe.router_bias)
        self.choice_bias = nn.Parameter(torch.empty(moe.num_experts)) if moe.choice_bias else None
        self.expert_scale = nn.Parameter(torch.empty(moe.num_experts)) if moe.expert_scale else None
        self.experts = nn.ModuleList(MLP(config, moe.intermediate_size) for _ in range(moe.num_experts))
        shared = moe.shared_intermediate_size
        self.shared = None if shared is None else MLP(config, shared)
        self.shared_gate = Linear(config.hidden_size, 1, bias=False) if moe.shared_gate else None

    def forward(self, x: Tensor, routed_by: Tensor | None = None) -> Tensor:
        """What the experts compute from x [..., C]; the router reads ``routed_by`` if it is given."""
        tokens = x.view(-1, x.shape[-1])  # [N, C]
        weights, chosen = self.route(tokens if routed_by is None else routed_by.view_as(tokens))
        out = torch.zeros_like(tokens)
        for number in sorted(set(chosen.flatten().tolist())):
            rows, rank = (chosen == number).nonzero(as_tuple=True)
            weight, expert = weights[rows, rank, None], self.experts[number]
            weighted: Tensor = (
                expert(tokens[rows] * weight) if self.moe.weighs_inputs else expert(tokens[rows]) * weight
            )
            out.index_add_(0, rows, weighted.to(out.dtype))
        if self.shared is not None:
            out = out + self.for_all(self.shared, tokens)
        return out.view_as(x)

    def for_all(self, shared: MLP, tokens: Tensor) -> Tensor:
        """What the shared expert adds for tokens [N, C]: [N, C]."""
        out: Tensor = shared(tokens)
        return out if self.shared_gate is None else out * torch.sigmoid(self.shared_gate(tokens))

    def route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The weights and the numbers of the experts chosen for tokens [N, C], each [N, num_experts_per_tok]."""
        if self.router_norm is not None:
            tokens = self.router_norm(tokens) * tokens.shape[-1] ** -0.5
        logits = self.router(tokens).float()
        scores = logits.sigmoid() if self.moe.scores == "sigmoid" else logits.softmax(dim=-1)
        ranked = scores if self.choice_bias is None else scores + self.choice_bias.float()
        chosen = self.in_best_groups(ranked).topk(self.per_token, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if self.moe.normalize:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + self.moe.normalize_eps)
        if self.expert_scale is not None:
            weights = weights * self.expert_scale.float()[chosen]
        return (weights * self.moe.scale).to(tokens.dtype), chosen

    def in_best_groups(self, ranked: Tensor) -> Tensor:
        """The experts' ranks [N, experts], -inf for those outside of a token's best groups."""
        moe = self.moe
        if moe.groups == moe.groups_per_tok:
            return ranked
        grouped = ranked.view(*ranked.shape[:-1], moe.groups, -1)
        best = grouped.topk(moe.group_best, dim=-1).values.sum(dim=-1).topk(moe.groups_per_tok, dim=-1).indices
        outside = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
        within: Tensor = grouped.masked_fill(outside.unsqueeze(-1), float("-inf")).flatten(-2)
        return within


class MLPAndExperts(nn.Module):
    """An MLP and experts side by side, each with a norm before and after it; the router reads what precedes the norms.

    It takes the residual stream [B, T, C] itself.
    """

    def __init__(self, config: ModelConfig, moe: MoeConfig, wide: int) -> None:
        super().__init__()
        self.mlp_norm, self.mlp = Norm(config, config.hidden_size), MLP(config, wide)
        self.mlp_post_norm = Norm(config, config.hidden_size)
        self.moe_norm, self.moe = Norm(config, config.hidden_size), MoE(config, moe)
        self.moe_post_norm = Norm(config, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        by_mlp: Tensor = self.mlp_post_norm(self.mlp(self.mlp_norm(x)))
        by_experts: Tensor = self.moe_post_norm(self.moe(self.moe_norm(x), routed_by=x))
        return by_mlp + by_experts
